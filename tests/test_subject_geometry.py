"""Crop, pad, squash, flip and rotation of a picture and its mask, against numpy, Pillow and SciPy."""
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from personalize.nodes.training.augment import Preparation, as_released, fitted, prepared, rotated
from personalize.nodes.training.seeds import generator

SHAPES = ((48, 48), (40, 97), (131, 52), (9, 30))


def picture(height: int, width: int, channels: int = 4) -> np.ndarray:
    """A smooth random picture (H, W, C) with a disc as mask in the last of 4 channels."""
    noise = np.random.default_rng(height * 1000 + width).random((height, width, channels))
    smooth = ndimage.gaussian_filter(noise, (3, 3, 0)).astype(np.float32)
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    if channels == 4:
        y, x = np.mgrid[:height, :width]
        smooth[..., 3] = (y - height * 0.4) ** 2 + (x - width * 0.55) ** 2 < (min(height, width) * 0.3) ** 2
    return smooth


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).movedim(-1, 0)


def all_prepared(picture: torch.Tensor, how: Preparation, index: int) -> torch.Tensor:
    return torch.stack(list(prepared(picture, how, index)))


def array(result: torch.Tensor) -> np.ndarray:
    return result.movedim(0, -1).numpy()


def scaled(image: np.ndarray, size: int) -> np.ndarray:
    """Each channel by Pillow's bilinear filter, in floating point."""
    channels = [Image.fromarray(np.ascontiguousarray(image[..., c]), mode="F").resize((size, size), Image.BILINEAR)
                for c in range(image.shape[-1])]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


def turned(image: np.ndarray, degrees: float) -> np.ndarray:
    """Counter-clockwise, by SciPy, on a canvas as large as the turned rectangle."""
    height, width = image.shape[:2]
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    shape = np.array([math.ceil(abs(c) * height + abs(s) * width), math.ceil(abs(s) * height + abs(c) * width)])
    to_source = np.array([[c, s], [-s, c]])  # rows grow downwards
    offset = (np.array([height, width]) - 1) / 2 - to_source @ ((shape - 1) / 2)
    return np.stack([ndimage.affine_transform(image[..., i], to_source, offset, tuple(shape), order=1,
                                              mode="grid-constant", cval=0) for i in range(image.shape[-1])], axis=-1)


def square_by_hand(image: np.ndarray, fit: str) -> np.ndarray:
    height, width, channels = image.shape
    if fit == "crop":
        side = min(height, width)
        top, left = (height - side + 1) // 2, (width - side + 1) // 2
        return image[top:top + side, left:left + side]
    if fit == "pad":
        side = max(height, width)
        canvas = np.zeros((side, side, channels), np.float32)
        canvas[..., :3] = 0.5
        canvas[(side - height) // 2:, (side - width) // 2:][:height, :width] = image
        return canvas
    return image


@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels", [3, 4])
def test_fit_equals_numpy_and_pillow(shape, fit, size, channels):
    image = picture(*shape, channels)
    result = array(fitted(tensor(image), fit, size))
    assert np.abs(result - scaled(square_by_hand(image, fit), size)).max() < 2e-5


def test_a_picture_of_the_right_size_is_untouched():
    image = tensor(picture(48, 48))
    assert torch.equal(fitted(image, "crop", 48), image)


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_quarter_turns_are_exact(shape, quarters):
    image = picture(*shape)
    assert np.abs(array(rotated(tensor(image), 90 * quarters)) - np.rot90(image, quarters)).max() < 2e-4


@pytest.mark.parametrize("degrees", [-45, -31.7, -3, 12.5, 45])
@pytest.mark.parametrize("shape", SHAPES)
def test_rotation_equals_scipy(shape, degrees):
    image = picture(*shape)
    result, expected = array(rotated(tensor(image), degrees)), turned(image, degrees)
    assert result.shape == expected.shape
    assert np.abs(result - expected).max() < 2e-4
    if abs(degrees) > 10:
        assert result[0, 0].max() == result[-1, -1].max() == 0, "the corners are black and outside the mask"


@pytest.mark.parametrize("turn, mirror", [(0.2, 0.9), (0.8, 0.1), (0.1, 0.2), (0.9, 0.9)])
def test_as_released_step_by_step(turn, mirror):
    image = picture(60, 90)
    result = array(as_released(tensor(image), "crop", 32, turn, 0.75, mirror, 0.99, 0.0))
    expected = turned(image, 22.5) if turn < 0.75 else image
    expected = expected[:, ::-1] if mirror < 0.25 else expected
    side = min(expected.shape[:2])
    rows, columns = np.nonzero(expected[..., 3] > 0)
    row, column = rows[len(rows) // 2], columns[len(rows) // 2]
    bottom_most = min(expected.shape[0] - side, row)
    left_most = max(0, column - side + 1)
    expected = expected[bottom_most:bottom_most + side, left_most:left_most + side]
    assert np.abs(result - scaled(expected, 32)).max() < 3e-4


@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize("shape", SHAPES)
def test_mask_follows_the_picture_exactly(shape, fit):
    """Where red shows the mask, red still shows it in every variant."""
    image = picture(*shape)
    image[..., 0] = image[..., 3]
    variants = all_prepared(tensor(image), Preparation(32, fit, "as released", 24, 5), 0)
    assert torch.equal(variants[:, 0], variants[:, 3])
    assert len({round(float(v.sum()), 3) for v in variants[:, 3]}) > 12, "the variants differ"


def test_padding_is_grey_and_outside_the_mask():
    image = np.ones((20, 60, 4), np.float32)
    variants = all_prepared(tensor(image), Preparation(60, "pad", "none", 1, 0), 0)
    assert variants[0, :3, :20].unique().tolist() == [0.5] and variants[0, 3, :20].max() == 0
    assert variants[0, :, 20:40].min() == 1


def test_flip_adds_the_mirrored_picture():
    image = picture(64, 64)
    variants = all_prepared(tensor(image), Preparation(64, "crop", "flip", 9, 0), 0)
    assert np.array_equal(array(variants[0]), image) and np.array_equal(array(variants[1]), image[:, ::-1])
    assert len(variants) == 2


def test_seed_and_number_decide_the_variants():
    image = tensor(picture(50, 70))

    def drawn(count, seed, index):
        return all_prepared(image, Preparation(24, "crop", "as released", count, seed), index)

    assert torch.equal(drawn(6, 3, 1), drawn(6, 3, 1))
    assert torch.equal(drawn(6, 3, 1)[:4], drawn(4, 3, 1))
    assert not torch.equal(drawn(6, 3, 1), drawn(6, 4, 1)) and not torch.equal(drawn(6, 3, 1), drawn(6, 3, 2))


def test_global_generator_is_neither_read_nor_moved():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = all_prepared(tensor(picture(40, 40)), Preparation(24, "crop", "as released", 3, 0), 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(all_prepared(tensor(picture(40, 40)), Preparation(24, "crop", "as released", 3, 0), 0), first)


def test_rates_and_angles_are_those_of_the_release():
    """A bar with one bright end in a white square tells each variant's angle, and whether it is mirrored."""
    y, x = np.mgrid[:65, :65] - 32.0
    image = np.ones((65, 65, 4), np.float32)
    image[..., 3] = (abs(y) < 3) & (abs(x) < 25)
    image[..., 0] = image[..., 3] * (x > 5)
    count = 600
    variants = all_prepared(tensor(image), Preparation(65, "squash", "as released", count, 11), 0).double()
    red, bar = variants[:, 0], variants[:, 3]
    grid = torch.from_numpy(np.stack([-y, x])).double()
    direction = ((red / red.sum((1, 2), keepdim=True))[:, None] * grid).sum((2, 3))
    mirrored = direction[:, 1] < 0
    angles = torch.rad2deg(torch.atan(direction[:, 0] / direction[:, 1])) * torch.where(mirrored, -1.0, 1.0)
    is_turned = variants[:, 1, 0, 0] < 1
    for share, probability in ((is_turned, 0.75), (mirrored, 0.25)):
        assert abs(share.double().mean() - probability) < 4 * math.sqrt(probability * (1 - probability) / count)
    assert bar.amax((1, 2)).min() > 0.9
    assert angles.abs().max() < 45.5 and angles.min() < -43 and angles.max() > 43
    assert angles[~is_turned].abs().max() < 0.1
    assert abs(angles[is_turned].mean()) < 4 * 26 / math.sqrt(count * 0.75), "as often to the left as to the right"


def test_random_crops_cover_the_picture_but_never_lose_the_subject():
    image = np.zeros((20, 200, 4), np.float32)
    image[..., 1] = np.linspace(0, 1, 200)
    free = all_prepared(tensor(image[..., :3]), Preparation(20, "crop", "as released", 200, 2), 0)[:, 1].mean((1, 2))
    assert free.min() < 0.15 and free.max() > 0.85
    image[4:6, 3:5, 3] = 1
    kept = all_prepared(tensor(image), Preparation(20, "crop", "as released", 200, 2), 0)
    assert kept[:, 3].amax((1, 2)).min() > 0
    assert kept[:, 3].sum((1, 2)).std() > 0.01


def test_shrinking_large_pictures_first_changes_less_than_a_level():
    """They are made twice the size before they are turned; a mean level of 8 bits is 1/255."""
    large = ndimage.zoom(picture(30, 40, 3), (16, 16, 1), order=1)
    how = Preparation(64, "crop", "as released", 6, 3)
    draws = torch.rand(6, 5, generator=generator(3, "augmentation", 0)).tolist()
    direct = torch.stack([as_released(tensor(large), "crop", 64, *draw) for draw in draws])
    assert (all_prepared(tensor(large), how, 0) - direct).abs().mean() < 1 / 255
