"""Reference pictures made ready for encoders, and what a CLIP Vision sees in them."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Sequence

import comfy.model_management
import torch
from comfy.clip_model import clip_preprocess
from torch import Tensor

GREY = 0.5
CROP, SQUASH = "crop", "squash"
LONGEST = 2  # times the shorter side: what lies further out cannot reach the square in the middle
Fit = Literal["crop", "squash"]


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


def pixel_values(image: Tensor, size: int, mean: list[float], std: list[float], fit: Fit) -> Tensor:
    """`checked` pictures (B, H, W, 3) as an encoder wants them: (B, 3, size, size), bicubic, normalised.

    fit: "crop" takes the square in the middle, "squash" the whole picture without keeping its proportions.
    """
    if fit == CROP:
        image = _without_far_ends(image)
    return torch.cat([clip_preprocess(picture[None], size, mean, std, fit == CROP) for picture in image])


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


def _without_far_ends(image: Tensor) -> Tensor:
    """A very long picture without what a square crop from its middle would cut off anyway: saves memory."""
    longest = LONGEST * min(image.shape[1:3])
    top, left = (max(0, (side - longest) // 2) for side in image.shape[1:3])
    return image[:, top:image.shape[1] - top, left:image.shape[2] - left]
