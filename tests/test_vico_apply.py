"""Sampling with references equals both streams written out, and what runs for it."""
from __future__ import annotations

import pytest
import torch
from torch import Tensor

from personalize.nodes.attention.layers import unet_of
from personalize.nodes.attention.masks import on_grid
from personalize.nodes.attention.record import Record
from personalize.nodes.vico.apply import Reference, Use
from support.sampling import sample
from support.vico_scene import CFG, DOG, STEPS, TOY, Scene, close, dog, latents


@pytest.fixture
def scene(sd15):
    return Scene(sd15)


@pytest.fixture(params=["sd15", "sdxl"])
def any_scene(request):
    return Scene(request.getfixturevalue(request.param))


# ------------------------------------------------------------------------------------------------ against plain loops
@pytest.mark.parametrize("use, references", [
    (Use("paper"), 1), (Use("released", halves="shared"), 1), (Use("none", halves="conditional", strength=0.6), 2)],
    ids=["both", "shared", "conditional"])
def test_sampling_equals_both_streams_by_hand(any_scene, use, references):
    """Also with two pictures of one object, whose tokens follow each other."""
    given = [Reference(latents(references), DOG)]
    found = any_scene.sample(given, use, batch=2)
    close(found, any_scene.by_hand(given, use, batch=2))
    assert float((found - any_scene.plain(batch=2)).abs().max()) > 0.05


def test_two_objects_have_a_mask_each(scene):
    """Appendix J: two references, tokens concatenated, each masked by its own word."""
    given = [dog(), Reference(latents(seed=8), TOY)]
    close(scene.sample(given), scene.by_hand(given))


def test_given_mask_takes_the_place_of_the_automatic_one(scene):
    shape = torch.zeros(1, 128, 128)
    shape[:, 10:70, 30:128] = 1

    def masker(maps: Tensor) -> Tensor:
        side = round(maps.shape[-1] ** 0.5)
        return on_grid(shape, (side, side)).flatten(1).expand(len(maps), -1)

    close(scene.sample([dog(masks=shape)]), scene.by_hand([dog()], masker=masker))
    assert not torch.equal(scene.sample([dog(masks=shape)], Use("released")), scene.sample([dog()], Use("released")))


# ------------------------------------------------------------------------------------------------ the record
def test_record_holds_maps_and_masks_of_the_references(scene):
    record = Record("Apply ViCo")
    model = scene.patched([Reference(latents(2), DOG), Reference(latents(seed=9), TOY)], record=record)
    result = sample(model, scene.positive, scene.negative, steps=STEPS, cfg=CFG, batch=2)
    run = record.sampling(result)
    assert run.images == 3 and sorted(run.masks) == [0, 1] and run.words == (DOG, TOY)
    assert [layer.order for layer in run.layers] == [8, 10, 12, 14]
    for mask in run.masks.values():
        assert mask.shape == (3, 16, 16) and 0 < mask.float().mean() < 1
    assert run.map(DOG, run.layers[-1]).shape == (3, 16, 16)
    with torch.inference_mode():
        unmasked = Record("Apply ViCo")
        sample(scene.patched([dog()], Use("none"), record=unmasked), scene.positive, scene.negative, steps=STEPS)
    assert not unmasked.current.masks


# ------------------------------------------------------------------------------------------------ speed
def unet_rows(model) -> list[int]:
    """Rows of every call of the U-Net that the MODEL makes while it samples, the references' included."""
    rows: list[int] = []
    hook = unet_of(model).time_embed.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    rows.append(hook)
    return rows


@pytest.mark.parametrize("use, expected", [
    (Use("paper"), [2, 6] * 3), (Use("paper", halves="shared"), [1, 6] * 3),
    (Use("paper", halves="shared", reuse=2), [1, 6, 6, 1, 6]),
    (Use("paper", halves="conditional", reuse=9), [1, 6, 6, 6])])
def test_references_run_once_for_a_whole_batch(scene, use, expected):
    rows = unet_rows(scene.model)
    hook = rows.pop()
    try:
        small = Reference(latents(side=8), DOG)
        sample(scene.patched([small], use), scene.positive, scene.negative, batch=3, steps=3, cfg=CFG, size=(8, 8))
    finally:
        hook.remove()
    assert rows == expected


def test_many_references_need_no_more_memory_than_the_picture(scene):
    """Five references with two prompts run two rows at a time, as many as the picture has, and see the same."""
    rows = unet_rows(scene.model)
    hook = rows.pop()
    five = Reference(latents(5), DOG)
    try:
        found = scene.sample([five])
    finally:
        hook.remove()
    assert rows == [2, 2, 2, 2, 2, 2] * STEPS
    close(found, scene.by_hand([five]))


def test_reference_stops_after_the_last_image_block(scene):
    ran = []
    unet = unet_of(scene.model)
    hooks = [unet.output_blocks[i][0].register_forward_hook(lambda m, a, o, i=i: ran.append((i, len(o))))
             for i in (9, 10, 11)]
    try:
        scene.sample([dog()], batch=3)
    finally:
        for hook in hooks:
            hook.remove()
    assert [i for i, rows in ran if rows == 2] == [9, 10] * STEPS
    assert [i for i, rows in ran if rows == 6] == [9, 10, 11] * STEPS
