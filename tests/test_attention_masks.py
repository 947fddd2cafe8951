"""Thresholds against scikit-image, scaling and resizing of maps, colours and grids."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.filters import threshold_otsu
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from personalize.nodes.attention.maps import mean_over_layers, normalised, resized
from personalize.nodes.attention.masks import above, on_grid, otsu, otsu_threshold
from personalize.nodes.attention.words import words_of
from personalize.nodes.families.find import unet_of
from personalize.nodes.recording.heat import COLOURS, coloured, labelled_grid, overlaid
from personalize.nodes.recording.record import Record
from personalize.nodes.recording.sampling_recorder import recording_model
from support.sampling import encoded, sample


def blobs(seed, side=24):
    """A bright disc on a dark ground, both noisy."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    centre, radius = torch.rand(2, generator=generator) * side, side * (0.2 + 0.2 * torch.rand(1, generator=generator))
    disc = ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius ** 2).float()
    return 0.01 + 0.03 * disc + 0.008 * torch.randn(side, side, generator=generator).abs()


def as_scikit_image(map_):
    threshold = threshold_otsu(map_.double().numpy())
    return threshold, torch.from_numpy(map_.double().numpy() > threshold)


MAPS = {
    "noisy disc": blobs(0), "small disc": blobs(1, side=8), "large": blobs(2, side=64),
    "noise": torch.rand(16, 16, generator=torch.Generator().manual_seed(3)),
    "two values": torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0]]),
    "two values, unequal": torch.tensor([[0.2, 0.2, 0.2], [0.2, 0.2, 0.7]]),
    "three values": torch.tensor([[0.0, 0.0, 0.4], [0.4, 1.0, 1.0]]),
    "constant": torch.full((4, 4), 0.25), "zero": torch.zeros(4, 4), "one pixel": torch.tensor([[0.5]]),
    "negative": blobs(4) - 0.5}


@pytest.mark.parametrize("name", MAPS)
def test_otsu_equals_scikit_image(name):
    threshold, mask = as_scikit_image(MAPS[name])
    assert float(otsu_threshold(MAPS[name].double())) == pytest.approx(threshold, rel=1e-9, abs=1e-12)
    assert torch.equal(otsu(MAPS[name]), mask)


def test_otsu_asks_other_devices_for_no_float64():
    """Apple's and some of Intel's GPUs have none; "meta" stands for any device that is neither CPU nor CUDA."""
    made = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **kwargs or {})
            made.extend(each.dtype for each in tree_leaves(result) if isinstance(each, torch.Tensor))
            return result

    with Seen():
        otsu(torch.empty(3, 8, 8, device="meta"), torch.ones(3, 8, 8, dtype=torch.bool, device="meta"))
    assert torch.float32 in made and torch.float64 not in made


def test_otsu_of_real_maps_equals_scikit_image(any_checkpoint):
    model, clip, _ = any_checkpoint
    record = Record("the test", every_step=True)
    recorded = recording_model(model, record, unet_of(model).layers, words_of(["dog"], clip, "a dog on grass"))
    sample(recorded, encoded(clip, "a dog on grass"), encoded(clip, ""), batch=2)
    run = record.sampling()
    for layer in run.layers:
        for step in run.map_steps:
            maps = run.map("dog", layer, step)
            assert maps.unique().numel() > 1
            found = otsu(maps)
            for map_, mask in zip(maps, found):
                assert torch.equal(mask, as_scikit_image(map_)[1])


@pytest.mark.smoke
def test_batches_are_thresholded_map_by_map():
    maps = torch.stack([blobs(seed) * (seed + 1) for seed in range(4)]).unflatten(0, (2, 2))
    expected = torch.stack([as_scikit_image(map_)[1] for map_ in maps.flatten(0, 1)]).unflatten(0, (2, 2))
    assert otsu_threshold(maps).shape == (2, 2) and torch.equal(otsu(maps), expected)


def test_region_counts_alone():
    map_, inside = blobs(0), torch.zeros(24, 24, dtype=torch.bool)
    inside[4:20, 2:15] = True
    map_[~inside] += 5  # must not matter
    values = map_[inside].double().numpy()
    expected = torch.zeros_like(inside)
    expected[inside] = torch.from_numpy(values > threshold_otsu(values))
    assert torch.equal(otsu(map_.double(), inside), expected) and expected.any()
    scaled = (values - values.min()) / (values.max() - values.min())
    expected[inside] = torch.from_numpy(scaled > 0.4)
    assert torch.equal(above(map_.double(), 0.4, inside), expected) and expected.any()
    nowhere = torch.zeros_like(inside)
    assert not otsu(map_, nowhere).any() and not above(map_, 0.0, nowhere).any()


def test_fixed_threshold_is_on_the_scale_of_each_map():
    maps = torch.stack([blobs(0), 100 * blobs(0) - 3])
    expected = (maps[0].numpy() - maps[0].min().item()) / np.ptp(maps[0].numpy()) > 0.3
    assert torch.equal(above(maps, 0.3)[0], torch.from_numpy(expected)) and torch.equal(*above(maps, 0.3))
    assert not above(torch.full((2, 4, 4), 0.7), 0.0).any()
    assert above(maps, 0.0).sum() == maps.numel() - 2 and not above(maps, 1.0).any()


def test_normalised():
    maps = torch.stack([blobs(0), 2 * blobs(1, 24), torch.full((24, 24), 0.5)])
    each, together = normalised(maps), normalised(maps, (0, 1, 2))
    for map_, found in zip(maps[:2], each):
        assert torch.allclose(found, (map_ - map_.min()) / (map_.max() - map_.min()))
    assert torch.equal(each[2], torch.zeros(24, 24))
    assert torch.allclose(together, (maps - maps.min()) / (maps.max() - maps.min()))


def test_resizing_keeps_the_mean_and_the_place():
    map_ = torch.zeros(1, 8, 8)
    map_[0, 2, 5] = 1.0
    larger, smaller = resized(map_, (32, 32)), resized(map_, (4, 4))
    assert larger.argmax() in [y * 32 + x for y in range(8, 12) for x in range(20, 24)]
    assert float(larger.mean()) == pytest.approx(float(map_.mean()), rel=1e-5)
    assert int(smaller.argmax()) == 1 * 4 + 2
    assert resized(map_, (8, 8)) is map_
    wide = torch.rand(2, 3, 5, 8)
    assert resized(wide, (10, 16)).shape == (2, 3, 10, 16)
    assert torch.allclose(mean_over_layers([wide, wide * 3], (5, 8)), wide * 2)


def test_mask_on_a_grid_is_the_covered_share():
    mask = (torch.rand(2, 16, 24, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    expected = mask.unflatten(1, (4, 4)).unflatten(3, (6, 4)).mean((2, 4))
    assert torch.allclose(on_grid(mask, (4, 6)), expected)
    assert torch.equal(on_grid(mask, (32, 48)), mask.repeat_interleave(2, 1).repeat_interleave(2, 2))


@pytest.mark.parametrize("colours", COLOURS)
def test_colours_run_from_the_first_to_the_last(colours):
    def hexed(pixel):
        return "#" + "".join(f"{round(float(channel) * 255):02x}" for channel in pixel)

    table = COLOURS[colours]
    shown = coloured(torch.linspace(0, 1, len(table))[None, None], colours)[0, 0]
    assert [hexed(pixel) for pixel in shown] == list(table)
    beyond, ends = (coloured(torch.tensor([[values]]), colours) for values in ((-1.0, 2.0), (0.0, 1.0)))
    assert torch.equal(beyond, ends)


def test_overlay():
    heat, picture = torch.rand(2, 4, 4, 3), torch.rand(2, 4, 4, 3)
    assert torch.equal(overlaid(heat, picture, 0.0), picture)
    assert torch.allclose(overlaid(heat, picture, 1.0), heat)
    assert torch.allclose(overlaid(heat, picture, 0.25), 0.25 * heat + 0.75 * picture, atol=1e-6)


def test_grid_has_every_cell_under_its_label():
    cells = torch.stack([torch.full((40, 160, 3), 0.2 * (i + 1)) for i in range(3)])
    page = labelled_grid(cells, ["dog", "a red hat", "x" * 90], 2)
    assert page.shape[0] == 1 and page.shape[2] == 3 * 8 + 2 * 160
    for index, (top, left) in enumerate(((30, 8), (30, 176), (100, 8))):
        assert torch.allclose(page[0, top:top + 40, left:left + 160], cells[index], atol=0.5 / 255)
        label = page[0, top - 22:top, left:left + 160]
        assert label.max() > 0.5, "no text above the cell"
    assert page[0, 78:100, 168:].max() == 0, "the long label reaches beyond its cell"
    assert labelled_grid(cells.repeat(20, 4, 8, 1), ["x"] * 60, 20).shape[2] <= 2560 + 21 * 8
