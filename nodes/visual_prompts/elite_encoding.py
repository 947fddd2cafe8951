"""A reference picture and its mask as ELITE's word and patches."""
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .elite import LAYERS
from .elite_attention import EliteTokens
from .elite_files import Elite
from .pictures import SQUASH, checked, checked_vision, see_image
from .tokens import EACH, ELITE, Combine, combined


def elite_tokens(elite: Elite, clip_vision, image: Tensor, mask: Tensor | None, combine: Combine) -> EliteTokens:
    """What ELITE sees in pictures (B, H, W, C).

    mask: (B or 1, H, W), above 0 on the subject; None for what is not transparent.
    Raises ValueError if picture, mask, CLIP Vision and files do not fit each other.
    """
    whole, subject = checked(image), _subject(image, mask)
    states = _states(elite, clip_vision, whole)
    patches = _states(elite, clip_vision, whole * subject[..., None])
    side = round((patches[0].shape[1] - 1) ** 0.5)
    grid = functional.interpolate(subject[:, None], (side, side), mode="nearest").flatten(1)
    local = elite.patches(patches, grid)
    local = local if combine == EACH else local.flatten(0, 1)[None]
    return EliteTokens(combined(elite.word(states), combine), ELITE, local=local)


def _states(elite: Elite, clip_vision, image: Tensor) -> list[Tensor]:
    """What each of the five layers sees, (B, 1 + P, w)."""
    vision = checked_vision(clip_vision)
    found, needed = vision.config["hidden_size"], elite.of_word.vision_width
    if found != needed or vision.config["num_hidden_layers"] <= max(LAYERS):
        raise ValueError(f"This CLIP Vision has {vision.config['num_hidden_layers']} layers of width {found} but "
                         f"{elite.of_word.name} needs 24 of width {needed}; load ViT-L/14 (clip-vit-large-patch14) in "
                         "Load CLIP Vision.")
    return list(see_image(vision, image, SQUASH, LAYERS).layers.unbind(1))


def _subject(image: Tensor, mask: Tensor | None) -> Tensor:
    """(B, H, W) of 0 and 1. Raises ValueError if the mask does not fit the pictures or is empty."""
    count, height, width = image.shape[:3]
    if mask is None:
        mask = image[..., 3] if image.shape[-1] == 4 else torch.ones(count, height, width)
    mask = (mask.reshape(-1, *mask.shape[-2:]).cpu() > 0).float()
    if mask.shape[1:] != (height, width) or len(mask) not in (1, count):
        raise ValueError(f"mask is {len(mask)} × {mask.shape[2]}×{mask.shape[1]} but image is {count} × "
                         f"{width}×{height}; connect the mask made for these pictures (Load Image gives an empty 64×64 "
                         "mask if the file has no transparency).")
    if not mask.flatten(1).any(1).all():
        raise ValueError("mask is empty; paint the subject white, or disconnect it.")
    return mask.expand(count, -1, -1)
