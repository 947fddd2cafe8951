"""Pictures are what their scenes say: deterministic, with exact masks, in the promised variety."""
from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from miniature.factors import (
    ACCESSORIES,
    ANIMATE,
    BACKGROUNDS,
    CLASSES,
    COLOR_NAMES,
    HUE_NAMES,
    INANIMATE,
    PATTERNS,
    POSES,
    STYLES,
    Color,
    Identity,
    Scene,
    Second,
    color_rgb,
    contrast,
    sample_identity,
    sample_scene,
    with_factors,
)
from miniature.renderer import SIZE, draw

PLAIN_RED = Identity("teapot", "plain", Color(0), Color(10))
ROUNDING = 2  # 8-bit levels that smoothing of a mask's rim may leave
SCENE = Scene(PLAIN_RED, "standing", "none", "meadow", "drawing", None, 7)


def _difference(one, other) -> np.ndarray:
    """(128, 128): largest difference of two pictures over the channels."""
    return np.abs(one.picture.astype(int) - other.picture).max(-1)


def test_the_same_scene_gives_the_same_bytes():
    for seed in range(6):
        scene = sample_scene(random.Random(seed))
        first, again = draw(scene), draw(scene)
        assert first.picture.tobytes() == again.picture.tobytes()
        assert first.subject.tobytes() == again.subject.tobytes()
        assert draw(with_factors(scene, seed=scene.seed + 1)).picture.tobytes() != first.picture.tobytes()


def test_shapes_and_ranges():
    drawing = draw(SCENE)
    assert drawing.picture.shape == (SIZE, SIZE, 3) and drawing.picture.dtype == np.uint8
    for mask in (drawing.subject, drawing.accessory, drawing.second, drawing.background):
        assert mask.shape == (SIZE, SIZE) and mask.min() >= 0 and mask.max() <= 1


@pytest.mark.parametrize("seed", range(8))
def test_masks_share_out_every_pixel(seed):
    drawing = draw(sample_scene(random.Random(seed)))
    total = drawing.subject + drawing.accessory + drawing.second + drawing.background
    np.testing.assert_allclose(total, 1, atol=0.02)
    assert 0.04 < drawing.subject.mean() < 0.5
    assert (drawing.accessory.sum() > 0) == (drawing.scene.accessory != "none")
    assert (drawing.second.sum() > 0) == (drawing.scene.second is not None)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("style", STYLES)
def test_the_subject_mask_is_exactly_where_the_identity_shows(kind, style):
    """Another identity changes pixels of the subject and no others."""
    identity = Identity(kind, "striped", Color(0), Color(10))
    scene = with_factors(SCENE, identity=identity, style=style)
    one = draw(scene)
    other = draw(with_factors(scene, identity=Identity(kind, "striped", Color(6), Color(4))))
    np.testing.assert_array_equal(one.subject, other.subject)
    changed = _difference(one, other) > ROUNDING
    assert not changed[one.subject == 0].any()
    assert changed[one.subject == 1].mean() > 0.35


def test_the_background_mask_is_exactly_where_the_place_shows():
    one, other = draw(SCENE), draw(with_factors(SCENE, background="volcano"))
    solid = one.subject == 1
    assert solid.sum() > 500
    assert _difference(one, other)[solid].max() <= ROUNDING
    assert (_difference(one, other) > ROUNDING)[one.background == 1].mean() > 0.95


def test_colours_are_seen():
    drawing = draw(SCENE)
    inside = np.median(drawing.picture[drawing.subject == 1], axis=0)
    assert np.abs(inside - color_rgb(Color(0))).max() < 20


@pytest.mark.parametrize("pattern", [name for name in PATTERNS if name != "plain"])
@pytest.mark.parametrize("kind", CLASSES)
def test_both_colours_of_a_pattern_show_on_every_shape(kind, pattern):
    """A pattern of which only one colour is seen would be a truth that nobody can read."""
    first, second = Color(0), Color(10)
    identity = Identity(kind, pattern, first, second)
    drawing = draw(with_factors(SCENE, identity=identity, style="drawing", accessory="none"))
    pixels = drawing.picture[drawing.subject == 1].astype(int)
    near = [np.abs(pixels - color_rgb(color)).max(1) < 24 for color in (first, second)]
    assert min(each.sum() for each in near) > 0.2 * (near[0] | near[1]).sum()


def test_stripes_are_at_least_sixteen_pixels_wide():
    identity = Identity("mushroom", "striped", Color(0), Color(10))
    for seed in range(10):
        drawing = draw(with_factors(SCENE, identity=identity, seed=seed, style="photo",
                                   second=Second("next to", "box")))
        rows = np.nonzero(drawing.subject.sum(1) > 30)[0]
        row = rows[len(rows) // 3]
        line = drawing.picture[row][drawing.subject[row] == 1].astype(int)
        red = line[:, 0] > line[:, 2]
        runs = np.diff(np.nonzero(np.diff(red))[0])
        assert len(runs) and runs.min() >= 16


def test_everything_is_drawn_and_nothing_held_out():
    rng = random.Random(0)
    drawn = [sample_scene(rng) for _ in range(6000)]
    assert not any(scene.held_out for scene in drawn)
    assert {scene.identity.kind for scene in drawn} == set(CLASSES) and len(CLASSES) >= 10
    assert {scene.identity.pattern for scene in drawn} == set(PATTERNS)
    assert {scene.pose for scene in drawn} == set(POSES)
    assert {scene.accessory for scene in drawn} == set(ACCESSORIES)
    assert {scene.background for scene in drawn} == set(BACKGROUNDS) and len(BACKGROUNDS) >= 10
    share = Counter(scene.second is not None for scene in drawn)[True] / len(drawn)
    assert 0.2 < share < 0.3
    assert ANIMATE and INANIMATE


def test_held_out_scenes_are_the_rest():
    rng = random.Random(1)
    held = [sample_scene(rng, "held_out") for _ in range(300)]
    assert all(scene.held_out for scene in held)
    everything = [sample_scene(rng, "all") for _ in range(4000)]
    assert 0.1 < sum(scene.held_out for scene in everything) / 4000 < 0.3
    with pytest.raises(ValueError, match="held_out"):
        sample_scene(rng, "test")


def test_named_identities_have_names_and_contrast():
    rng = random.Random(2)
    for _ in range(300):
        identity = sample_identity(rng)
        assert contrast(identity.first, identity.second) > 110
        assert identity.named == (identity.pattern in PATTERNS[:6])
        assert identity.basic == (identity.named and {identity.first.name, identity.second.name} <= {*COLOR_NAMES})


def test_only_vivid_colours_of_even_hue_are_basic_and_those_between_two_words_have_none():
    colors = {Color(hue, tone): (HUE_NAMES[hue], tone) for hue in range(16) for tone in range(3)}
    assert len({color.words for color in colors}) == 48
    for color, (word, tone) in colors.items():
        assert color.words == ("", "dark ", "pale ")[tone] + word
        assert color.name == (word if tone == 0 and color.hue % 2 == 0 else None)
    for hue in range(16, 32):
        middle, (one, other) = color_rgb(Color(hue)), (color_rgb(Color(h % 16)) for h in (hue - 16, hue - 15))
        assert Color(hue).words is None and Color(hue).name is None
        assert all(min(a, b) - 12 <= m <= max(a, b) + 60 for a, m, b in zip(one, middle, other)), hue
