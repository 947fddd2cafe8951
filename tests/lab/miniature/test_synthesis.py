"""The second look: silhouettes and patterns laid over drawn subjects, against the truth and against plain numpy."""
from __future__ import annotations

import random
from functools import lru_cache

import numpy as np
import pytest
import torch
from PIL import Image

from miniature.data import draw_all, masks_tensor, pictures_tensor, scenes
from miniature.factors import CLASSES, PATTERNS, POSES, Color, Identity, Scene
from miniature.oracle_training import _fit
from miniature.renderer import LOCAL, Drawing, covers
from miniature.shapes import SUBJECTS
from miniature.synthesis import DARK, EVIDENCE, SecondLook, _shares, explained, silhouettes

COLORS = {"vivid": (Color(0), Color(10)), "dark": (Color(2, 1), Color(5, 1)), "pale": (Color(4, 2), Color(14, 2))}


@lru_cache(maxsize=1)
def _drawn() -> list[Drawing]:
    return draw_all(scenes(60, "held_out", 31))


def _subject(drawing: Drawing) -> tuple[torch.Tensor, torch.Tensor]:
    return pictures_tensor([drawing])[0], masks_tensor([drawing])[0, 0] > 0.5


def _read(drawing: Drawing) -> torch.Tensor:
    """What each pattern explains, with class and pose known."""
    picture, mask = _subject(drawing)
    kind = drawing.scene.identity.kind
    overlaps, places = silhouettes(mask, drawing.scene.pose)
    which = CLASSES.index(kind)
    return explained(picture, mask, kind, places[which], overlaps[which])


def test_a_subjects_own_silhouette_fits_its_mask_best():
    for drawing in _drawn():
        overlaps, _ = silhouettes(_subject(drawing)[1], drawing.scene.pose)
        assert CLASSES[overlaps.argmax()] == drawing.scene.identity.kind


@pytest.mark.parametrize("pose", POSES)
def test_a_silhouette_lies_where_pillow_puts_it(pose):
    """The map of the best fit, given to Pillow, covers the mask as much as it says."""
    drawing = next(
        d for d in _drawn() if d.scene.pose == pose and d.scene.accessory == "none" and d.scene.second is None
    )
    mask, kind = _subject(drawing)[1].numpy(), drawing.scene.identity.kind
    overlaps, places = silhouettes(torch.from_numpy(mask), pose)
    overlap, place = overlaps[CLASSES.index(kind)], places[CLASSES.index(kind)].double().numpy()
    scale = 2 / LOCAL  # of -1..1 in a local pixel, whose centre is at + 0.5
    local_to_picture = np.vstack([place @ [[scale, 0, -1], [0, scale, -1], [0, 0, 1]], [0, 0, 1]])
    pixel_to_picture = np.array([[2 / 128, 0, -1], [0, 2 / 128, -1], [0, 0, 1]])
    back = np.linalg.inv(local_to_picture) @ pixel_to_picture
    laid = covers(SUBJECTS[kind])[1].transform((128, 128), Image.Transform.AFFINE, back[:2].ravel(),
                                               Image.Resampling.BILINEAR)
    laid = np.asarray(laid) > 127
    found = (laid & mask).sum() / (laid | mask).sum()
    assert found > 0.85 and found == pytest.approx(float(overlap), abs=0.05)


def test_the_pattern_that_was_drawn_explains_most():
    for drawing in _drawn():
        shares = _read(drawing)[:len(PATTERNS)]
        if drawing.scene.identity.pattern == "plain":
            assert shares.max() < 0.6
        else:
            assert PATTERNS[shares.argmax()] == drawing.scene.identity.pattern


@pytest.mark.parametrize("tone", COLORS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_are_read_in_every_tone(tone, pattern):
    """Where the oracle's network alone was wrong most often: dark subjects."""
    first, second = COLORS[tone]
    identity = Identity("turtle", pattern, first, first if pattern == "plain" else second)
    for seed, pose in enumerate(POSES):
        drawing = draw_all([Scene(identity, pose, "none", "snow", "photo", None, seed)])[0]
        shares = _read(drawing)[:len(PATTERNS)]
        assert shares[0] == 0 and (pattern == "plain" or PATTERNS[shares.argmax()] == pattern)


def test_shares_are_those_of_least_squares():
    rng = np.random.default_rng(0)
    colors, patterns, weight = rng.random((2, 3, 50)), rng.random((4, 50)).round(), rng.random((2, 50))
    shares, variance = _shares(*map(torch.from_numpy, (colors, patterns, weight)))
    for n in range(2):
        root = np.sqrt(weight[n] / weight[n].sum())[:, None]
        middle = np.average(colors[n], axis=1, weights=weight[n])
        total = (np.square(colors[n].T - middle) * root ** 2).sum()
        assert total == pytest.approx(float(variance[n]))
        for p in range(4):
            design = root * np.stack([np.ones(50), patterns[p]], 1)
            _, rest, *_ = np.linalg.lstsq(design, root * colors[n].T, rcond=None)
            assert float(shares[n, p]) == pytest.approx((total - rest.sum()) / (total + DARK), abs=1e-6)


def test_next_to_nothing_is_no_evidence():
    picture, mask = torch.rand(3, 128, 128), torch.zeros(128, 128, dtype=torch.bool)
    mask[4, 4:8] = True
    overlaps, places = silhouettes(mask, "lying")
    assert overlaps.shape == (len(CLASSES),) and not overlaps.any()
    assert not explained(picture, mask, "dog", places[0], overlaps[0]).any()
    mask[:3, :] = True  # a mask of no subject's form
    overlaps, places = silhouettes(mask, "standing")
    found = explained(picture, mask, "dog", places[0], overlaps[0])
    assert found.shape == (EVIDENCE,) and found.isfinite().all() and overlaps.isfinite().all()


def test_a_second_look_follows_what_fits_and_otherwise_the_guess():
    """Where it learns, guesses are right nine times in ten; later the evidence is right and the guess never, then the
    guess is and the evidence never, but fits badly."""
    rows, labels = 400, torch.arange(400) % 8
    right, wrong = (torch.nn.functional.one_hot(which % 8, 8).float() for which in (labels, labels + 3))
    noise = 0.2 * torch.rand(rows, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    look, unsure = SecondLook(8, 8), torch.randn(rows, 8)
    assert torch.equal(look(unsure, noise).argsort(1), unsure.argsort(1))
    _fit(look, 4 * torch.where(torch.arange(rows)[:, None] % 10 == 0, wrong, right), right * 0.8 + noise, labels)
    assert (look(4 * wrong, right * 0.8 + noise).argmax(1) == labels).float().mean() > 0.85
    assert (look(4 * right, wrong * 0.2 + noise).argmax(1) == labels).float().mean() > 0.95


def test_a_mask_at_any_place_and_size_gives_finite_fits():
    rng = random.Random(0)
    for _ in range(20):
        mask = torch.zeros(128, 128, dtype=torch.bool)
        top, left = rng.randrange(100), rng.randrange(100)
        mask[top:top + rng.randrange(3, 128), left:left + rng.randrange(3, 128)] = True
        overlaps, places = silhouettes(mask, rng.choice(POSES))
        assert (overlaps >= 0).all() and (overlaps < 1).all() and places.isfinite().all()
