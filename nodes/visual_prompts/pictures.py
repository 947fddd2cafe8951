"""Reference pictures made ready for encoders, and what a CLIP Vision sees in them."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import comfy.model_management
import numpy as np
import torch
from PIL import Image
from torch import Tensor

GREY = 0.5
CROP, SQUASH = "crop", "squash"
LONGEST = 8  # times the shorter side
Fit = Literal["crop", "squash"]


def rounded_down(number: int) -> int:
    """Half of it, as the library transformers crops."""
    return number // 2


def rounded_to_even(number: int) -> int:
    """Half of it, as torchvision crops."""
    return round(number / 2)


@dataclass(frozen=True)
class Seen:
    """Output of a CLIP Vision for B pictures, float32 on the CPU.

    embeds: (B, p) projected class token.
    layers: (B, L, T, w) output of the L wanted layers, class token first, without the last norm.
    """

    embeds: Tensor
    layers: Tensor


def checked(image: Tensor, name: str = "image") -> Tensor:
    """An IMAGE (B, H, W, C) as (B, H, W, 3) float32 in 0…1 on the CPU; transparent parts become grey.

    Raises ValueError if it holds no picture, another number of channels, or values that are not numbers.
    """
    if image.ndim != 4 or not image.numel():
        raise ValueError(f"{name} holds no picture (its shape is {tuple(image.shape)}); connect an IMAGE.")
    if image.shape[-1] not in (1, 3, 4):
        raise ValueError(f"{name} has {image.shape[-1]} channels; connect an IMAGE with 3 (or 4 with transparency).")
    image = image.detach().to("cpu", torch.float32)
    if not torch.isfinite(image).all():
        raise ValueError(f"{name} holds values that are not numbers; look at the node that made it.")
    image = image.clamp(0, 1)
    if image.shape[-1] == 4:
        opaque = image[..., 3:]
        return image[..., :3] * opaque + GREY * (1 - opaque)
    return image.expand(*image.shape[:-1], 3)


def pixel_values(image: Tensor, size: int, mean: list[float], std: list[float], fit: Fit,
                 half: Callable[[int], int] = rounded_down) -> Tensor:
    """`checked` pictures (B, H, W, 3) as an encoder wants them: (B, 3, size, size), normalised.

    They are resized as the authors' code does it, by Pillow's bicubic filter on 8-bit pictures.
    fit: "crop" takes the square in the middle, "squash" the whole picture without keeping its proportions.
    half: how many of n pixels too many are cut off at the top or left. The library transformers rounds down,
        torchvision to the nearest even number.
    """
    ready = [_square(picture, size, fit, half) for picture in image]
    return ((torch.stack(ready) - torch.tensor(mean)) / torch.tensor(std)).movedim(-1, 1)


def _square(picture: Tensor, size: int, fit: Fit, half: Callable[[int], int]) -> Tensor:
    """(size, size, 3) of a picture (H, W, 3), all in 0…1 and steps of 1/255."""
    file = Image.fromarray((picture * 255).round().to(torch.uint8).numpy())
    sides = (size, size)
    if fit == CROP:
        file = _without_far_ends(file)
        sides = (size * file.width // min(file.size), size * file.height // min(file.size))
    resized = file.resize(sides, Image.Resampling.BICUBIC)
    left, top = (half(side - size) for side in sides)
    return torch.from_numpy(np.array(resized.crop((left, top, left + size, top + size)))).float() / 255


def _without_far_ends(file: Image.Image) -> Image.Image:
    """A very long picture without what lies too far out to reach the square in its middle: saves memory."""
    longest = LONGEST * min(file.size)
    left, top = (max(0, (side - longest) // 2) for side in file.size)
    return file.crop((left, top, file.width - left, file.height - top))


def see(clip_vision, pixels: Tensor, layers: Sequence[int]) -> Seen:
    """Runs a ComfyUI CLIP_VISION on pixel values (B, 3, size, size), picture by picture.

    layers: wanted layers, the first is 0, the last -1.
    """
    comfy.model_management.load_model_gpu(clip_vision.patcher)
    seen = []
    for picture in pixels.to(clip_vision.load_device):
        _, outputs, embeds, _ = clip_vision.model(pixel_values=picture[None], intermediate_output="all")
        seen.append((embeds.float().cpu(), outputs[:, list(layers)].float().cpu()))
    return Seen(*(torch.cat(parts) for parts in zip(*seen)))


def see_image(clip_vision, image: Tensor, fit: Fit, layers: Sequence[int]) -> Seen:
    """Runs a CLIP_VISION on `checked` pictures."""
    vision = checked_vision(clip_vision)
    pixels = pixel_values(image, vision.image_size, vision.image_mean, vision.image_std, fit)
    return see(vision, pixels, layers)


def checked_vision(clip_vision):
    """The CLIP_VISION itself. Raises ValueError if there is none or it is no CLIP."""
    if clip_vision is None:
        raise ValueError("clip_vision is missing: the file in Load CLIP Vision is none that ComfyUI knows; choose a "
                         "CLIP ViT there.")
    kind = getattr(clip_vision, "model_type", "clip_vision_model")
    if kind != "clip_vision_model":
        raise ValueError(f"clip_vision is a {kind.replace('_', ' ')}; load a CLIP ViT in Load CLIP Vision.")
    return clip_vision
