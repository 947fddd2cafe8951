"""Custom Diffusion's augmentation: its draws, its pixels, its prompts, and a loss that leaves the grey out."""
from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from personalize.nodes.text.encode import encode
from personalize.nodes.training.augment import Preparation, prepared
from personalize.nodes.training.diffusion import DiffusionLoss
from personalize.nodes.training.images import prepare, sources_from_tensors
from personalize.nodes.training.plan import Settings
from personalize.nodes.training.recipe import TemplateRecipe
from personalize.nodes.training.zoom import CLOSE_UP, FAR_AWAY, Framing, zooms
from support.trainings import in_place_of_a_step, subject, train

SIZE = 64


def pictures(count=3, masked=False, variants=8):
    draw = torch.Generator().manual_seed(1)
    images = [torch.rand(1, 80, 64, 3, generator=draw) for _ in range(count)]
    masks = [torch.ones(1, 80, 64) for _ in range(count)] if masked else []
    return prepare(sources_from_tensors(images, masks), Preparation(SIZE, "crop", "zoom", variants, 0)).pictures


# ------------------------------------------------------------------------------------------------ draws
def test_draws_are_those_of_the_recipe():
    """Of 20 000: shares and means within five standard errors."""
    size, drawn = 512, [zoom for index in range(80) for zoom in zooms(512, 250, 3, index)]
    smaller = [zoom for zoom in drawn if zoom.scale <= size]
    closer = [zoom for zoom in drawn if zoom.scale > size]
    count = len(drawn)
    assert len(smaller) / count == pytest.approx(2 / 3, abs=5 * (2 / 9 / count) ** 0.5)
    for found, first, last in ((smaller, size // 3, size), (closer, 614, 715)):
        scales = [zoom.scale for zoom in found]
        assert (min(scales), max(scales)) == (first, last)
        spread = (last - first) / 12 ** 0.5
        assert np.mean(scales) == pytest.approx((first + last) / 2, abs=5 * spread / len(found) ** 0.5)
        places = [(zoom.top + 0.5) / (abs(size - zoom.scale) + 1) for zoom in found]
        assert 0 <= min(places) and max(places) < 1
        assert np.mean(places) == pytest.approx(0.5, abs=5 * (1 / 12 / len(found)) ** 0.5)
    assert sum(zoom.mirrored for zoom in drawn) / count == pytest.approx(0.5, abs=5 * (0.25 / count) ** 0.5)
    far, close = (Counter(zoom.framing.prefix for zoom in found) for found in (smaller, closer))
    assert far.keys() == {*FAR_AWAY, ""} and close.keys() == set(CLOSE_UP)
    for one, other in (FAR_AWAY, CLOSE_UP):
        both = (far + close)[one] + (far + close)[other]
        assert (far + close)[one] / both == pytest.approx(0.5, abs=5 * (0.25 / both) ** 0.5)
    assert all((zoom.framing.prefix in FAR_AWAY) == (zoom.scale < 0.6 * size) for zoom in smaller)


def test_another_seed_or_picture_draws_others_and_the_same_the_same():
    one = zooms(SIZE, 8, 0, 0)
    zooms.cache_clear()
    assert zooms(SIZE, 8, 0, 0) == one != zooms(SIZE, 8, 1, 0) != zooms(SIZE, 8, 0, 1)


# ------------------------------------------------------------------------------------------------ pixels
@pytest.mark.parametrize("channels", [3, 4])
def test_pixels_and_mask_are_pasted_on_grey_or_cropped(channels):
    """Against Pillow and numpy; a smaller picture is scaled, a mask is 0 where there is grey."""
    smooth = np.asarray(Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 9, 3), np.uint8)).resize(
        (90, 90), Image.BICUBIC), np.float32) / 255
    whole = np.concatenate([smooth, np.ones((90, 90, 1), np.float32)], -1)[..., :channels]
    how, seen = Preparation(SIZE, "crop", "zoom", 24, 5), Counter()
    made = list(prepared(torch.from_numpy(whole).movedim(-1, 0), how, 2))
    for picture, zoom in zip(made, zooms(SIZE, 24, 5, 2), strict=True):
        layers = [Image.fromarray(whole[..., i].copy(), "F").resize((zoom.scale, zoom.scale), Image.BILINEAR)
                  for i in range(channels)]
        scaled = np.stack([np.asarray(layer) for layer in layers], -1)
        scaled = scaled[:, ::-1] if zoom.mirrored else scaled
        expected = np.full((SIZE, SIZE, channels), 0.5, np.float32)
        expected[..., 3:] = 0
        if zoom.scale > SIZE:
            expected = scaled[zoom.top:zoom.top + SIZE, zoom.left:zoom.left + SIZE]
        else:
            expected[zoom.top:zoom.top + zoom.scale, zoom.left:zoom.left + zoom.scale] = scaled
        seen[zoom.scale > SIZE, zoom.mirrored] += 1
        np.testing.assert_allclose(picture.movedim(0, -1).numpy(), expected, atol=2e-3)
    assert len(seen) == 4


def test_a_crop_keeps_a_piece_of_the_subject():
    mask = torch.zeros(1, 200, 200)
    mask[:, :6, -6:] = 1
    sources = sources_from_tensors([torch.rand(1, 200, 200, 3)], [mask])
    (picture,) = prepare(sources, Preparation(SIZE, "crop", "zoom", 64, 0)).pictures
    shapes = torch.cat([masks for _, masks in picture.made()])
    assert shapes.flatten(1).max(1).values.min() > 0


def test_valid_cells_are_those_of_the_released_code():
    for zoom in zooms(512, 200, 0, 0):
        expected = np.zeros((64, 64)) if zoom.scale <= 512 else np.ones((64, 64))
        if zoom.scale <= 512:
            expected[zoom.top // 8 + 1:(zoom.top + zoom.scale) // 8 - 1,
                     zoom.left // 8 + 1:(zoom.left + zoom.scale) // 8 - 1] = 1
        assert np.array_equal(zoom.framing.valid(64, 64, 8).numpy(), expected)
    assert all(zoom.framing.valid(4, 4, 8).sum() > 0 for zoom in zooms(32, 500, 0, 0))


# ------------------------------------------------------------------------------------------------ prompts
@pytest.mark.parametrize("prefix, prompt, expected", [
    ("a far away ", "photo of a <dog>", "a far away photo of a <dog>"),
    ("a far away ", "a photo of a <dog>", "a far away photo of a <dog>"),
    ("very small ", "an image of <dog>", "a very small image of <dog>"),
    ("zoomed in ", "<dog> at night", "zoomed in <dog> at night"), ("", "a photo", "a photo")])
def test_the_prompt_says_how_the_picture_stands(prefix, prompt, expected):
    assert Framing(prefix).prompt(prompt) == expected


def test_each_row_has_the_prompt_of_its_variant():
    shown = replace(subject(), pictures=pictures())
    rows = [row for step in range(1, 30) for row in TemplateRecipe().rows((shown,), step, 2, 0)["subject"]]
    assert len({row.prompt for row in rows}) == 5
    for row in rows:
        zoom = zooms(SIZE, 8, 0, row.picture)[row.variant]
        assert row.prompt == zoom.framing.prompt("a photo of a <my-dog>")


# ------------------------------------------------------------------------------------------------ loss
@pytest.mark.parametrize("background", [1.0, 0.25])
def test_the_loss_counts_the_picture_and_not_the_grey(sd15, background):
    """Against a loop over latent pixels, of four rows at once and one by one."""
    term, found = DiffusionLoss(background=background), {}

    def look(trainer, batch):
        found["loss"] = trainer._micro_batches(batch, measured=False)[0]["diffusion"]
        trainer.rows_at_once = 1
        found["pieces"] = trainer._micro_batches(batch, measured=False)[0]["diffusion"]
        latents, session, means = batch.latents["subject"], trainer.session, []
        for i, row in enumerate(batch.rows["subject"]):
            cond, own = trainer.objective.text.tokenizer(row.prompt), slice(i, i + 1)
            with torch.no_grad():
                encoded = encode(session.clip, [cond], [trainer.vectors()]).cond
                predicted = session.model.model.apply_model(
                    latents.noisy[own], latents.sigma[own], c_crossattn=encoded,
                    transformer_options=session.transformer_options(latents.sigma[own]))
            error = session.noise.output_error(latents.clean[own], latents.sigma[own], predicted)[0].double().square()
            framing = zooms(SIZE, 8, 0, row.picture)[row.variant].framing
            total = weights = 0.0
            for y, x in np.argwhere(framing.valid(8, 8, 8).numpy()):
                weight = background + (1 - background) * float(latents.masks[i, 0, y, x])
                total, weights = total + weight * float(error[:, y, x].sum()), weights + weight * len(error)
            means.append(total / weights)
        found["by hand"] = sum(means) / len(means)
        found["grey"] = float((latents.valid == 0).float().mean())

    with in_place_of_a_step(look):
        train(sd15, Settings(steps=1, batch_size=4), terms=(term,),
              subjects=(replace(subject(), pictures=pictures(masked=True)),))
    assert 0.1 < found["grey"] < 0.9
    assert found["loss"] == pytest.approx(found["by hand"], rel=1e-4)
    assert found["pieces"] == pytest.approx(found["by hand"], rel=1e-4)


def test_other_augmentations_have_no_valid_region(sd15):
    found = []
    with in_place_of_a_step(lambda trainer, batch: found.append(batch.latents["subject"].valid)):
        train(sd15, Settings(steps=1))
    assert found == [None]
