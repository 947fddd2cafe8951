"""Reference pictures reach the encoders as the authors' code makes them ready."""
from __future__ import annotations

import pytest
import torch

from personalize.nodes.visual_prompts.nodes_blip_diffusion import PersonalizeEncodePictureBlipDiffusion
from personalize.nodes.visual_prompts.pictures import CROP, SQUASH, pixel_values, rounded_down, rounded_to_even
from support.pictures_by_hand import cropped, normalised, squashed

SIZES = [(224, 224), (300, 451), (451, 300), (512, 768), (1000, 667), (225, 224), (97, 61), (61, 160)]
MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]


def picture(height, width):
    """Smooth shapes with hard edges, (1, H, W, 3)."""
    y, x = torch.meshgrid(torch.linspace(0, 9, height), torch.linspace(0, 7, width), indexing="ij")
    noise = torch.rand(height, width, 3, generator=torch.Generator().manual_seed(height))
    waves = torch.stack([x.sin() * y.cos(), (x * y).sin(), (x - y).cos().sign()], -1) / 2 + 0.5
    return (0.8 * waves + 0.2 * noise).clamp(0, 1)[None]


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("size", [224, 56])
def test_pixels_are_those_of_pillow(height, width, size):
    image = picture(height, width)
    for half, torchvision in ((rounded_down, False), (rounded_to_even, True)):
        assert torch.equal(pixel_values(image, size, MEAN, STD, CROP, half),
                           normalised(cropped(image[0], size, torchvision), MEAN, STD))
    assert torch.equal(pixel_values(image, size, MEAN, STD, SQUASH), normalised(squashed(image[0], size), MEAN, STD))


def test_both_ways_of_cropping_differ_by_a_pixel_where_an_odd_number_is_too_many():
    image = picture(300, 451)  # 224 · 451 / 300 = 336 pixels: 112 too many; at 56: 84, 28
    assert torch.equal(*(pixel_values(image, 224, MEAN, STD, CROP, half) for half in (rounded_down, rounded_to_even)))
    image = picture(200, 203)  # 227: 3 too many, of which 1 or 2 are cut off at the left
    one, two = (pixel_values(image, 224, MEAN, STD, CROP, half) for half in (rounded_down, rounded_to_even))
    assert torch.allclose(one[..., 1:], two[..., :-1], atol=0.02) and not torch.allclose(one, two, atol=0.02)


def test_far_ends_do_not_reach_the_crop():
    middle = pixel_values(picture(2, 60000)[:, :, 29990:30010], 224, MEAN, STD, CROP)  # whole, it would become 4.5 GB
    assert torch.allclose(pixel_values(picture(2, 60000), 224, MEAN, STD, CROP), middle, atol=0.02)


def test_blip_diffusion_crops_as_its_authors_do_unless_told_otherwise():
    fit = next(each for each in PersonalizeEncodePictureBlipDiffusion.GET_SCHEMA().inputs if each.id == "fit")
    assert list(fit.options) == [CROP, SQUASH] and fit.default in (None, CROP)
