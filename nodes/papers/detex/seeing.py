"""What an image encoder sees of a picture, as DETEX's mappers read it."""
from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ...training.description import model_fingerprint
from ...visual_prompts.pictures import CROP, checked, checked_vision, see_image


def image_features(clip_vision, image: Tensor) -> Tensor:
    """E(x) of pictures (B, H, W, 3) in 0…1: what CLIP compares with texts, of length 1, float32 on the CPU: (B, seen).

    Raises ValueError if there is no encoder, it is no CLIP, or a picture is none.
    """
    return F.normalize(see_image(checked_vision(clip_vision), checked(image), CROP, (-1,)).embeds, dim=-1)


def vision_fingerprint(clip_vision) -> str:
    """Digest of an image encoder's weights; "" where there is none."""
    return "" if clip_vision is None else model_fingerprint(clip_vision.patcher)
