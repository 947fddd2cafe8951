"""The oracle's close-up: the subject alone, filling the frame, wherever it stands in the picture."""
from __future__ import annotations

import random

import numpy as np
import torch
from PIL import Image

from miniature.data import draw_all, masks_tensor, pictures_tensor
from miniature.diffusion_training import spoken_colors, spoken_colors_shown
from miniature.factors import BACKGROUNDS, Scene, sample_scene
from miniature.oracle import CLOSEUP, MARGIN, closeup, load_oracle
from miniature.renderer import draw


def test_the_closeup_is_the_frame_around_the_mask_that_pillow_cuts_out():
    drawing = draw(sample_scene(random.Random(5)))
    pictures, masks = pictures_tensor([drawing]), (masks_tensor([drawing]) > 0.5).float()
    ours = closeup(pictures, masks)[0]
    rows, columns = np.nonzero(masks[0, 0].numpy())
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    half = MARGIN * max(bottom - top, right - left) / 2
    middle = ((left + right) / 2, (top + bottom) / 2)
    frame = (middle[0] - half, middle[1] - half, middle[0] + half, middle[1] + half)
    for channel, values in enumerate([*((2 * pictures[0] - 1) * masks[0]), masks[0, 0]]):
        cut = Image.fromarray(values.numpy()).transform(
            (CLOSEUP, CLOSEUP), Image.Transform.EXTENT, frame, Image.Resampling.BILINEAR)
        error = np.abs(np.asarray(cut) - ours[channel].numpy())
        assert error.mean() < 0.01 and np.quantile(error,
                                                   0.99) < 0.15  # Pillow leaves out the picture's outermost half pixel


def test_the_closeup_does_not_depend_on_place_or_surroundings():
    pictures, masks = torch.rand(1, 3, 128, 128).repeat(2, 1, 1, 1), torch.zeros(2, 1, 128, 128)
    patch = torch.rand(3, 24, 40)
    for row, (top, left) in enumerate(((8, 16), (80, 72))):
        pictures[row, :, top:top + 24, left:left + 40] = patch
        masks[row, :, top:top + 24, left:left + 40] = 1
    pictures[1, :, :60] = torch.rand(3, 60, 128)
    first, second = closeup(pictures, masks)
    assert torch.allclose(first, second, atol=1e-4)


def test_without_a_mask_the_frame_is_the_whole_picture():
    found = closeup(torch.rand(1, 3, 128, 128), torch.zeros(1, 1, 128, 128))
    assert found.shape == (1, 4, CLOSEUP, CLOSEUP) and found.abs().max() == 0


def test_spoken_colours_are_found_in_what_the_renderer_draws_and_no_others():
    asked = [identity for _, identity in spoken_colors()]
    scenes_ = [Scene(identity, "standing", "none", BACKGROUNDS[i % 11], "photo", None, i)
               for i, identity in enumerate(asked)]
    pictures = pictures_tensor(draw_all(scenes_))
    assert all(identity.first.words in prompt and identity.kind in prompt for prompt, identity in spoken_colors())
    assert len({identity.first.words for identity in asked}) == 48
    assert spoken_colors_shown(load_oracle(), pictures) > 0.95
    assert spoken_colors_shown(load_oracle(), pictures.roll(5, 0)) < 0.15
