"""Attention maps as pictures: scaling, resizing, averaging."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def size_of(picture: Tensor) -> tuple[int, int]:
    """Height and width of maps, latents or masks (..., H, W)."""
    height, width = picture.shape[-2:]
    return height, width


def normalised(maps: Tensor, over: tuple[int, ...] = (-2, -1)) -> Tensor:
    """Maps (..., h, w) scaled so that the smallest value is 0 and the largest 1 along the axes `over`.

    Where all values are equal the result is 0.
    """
    low, high = maps.amin(over, keepdim=True), maps.amax(over, keepdim=True)
    span = high - low
    return torch.where(span > 0, (maps - low) / torch.where(span > 0, span, torch.ones_like(span)), 0.0)


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (..., h, w) at (H, W), bilinear; when they get smaller every old pixel counts."""
    if size_of(maps) == tuple(size):
        return maps
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    return functional.interpolate(flat, tuple(size), mode="bilinear", antialias=True).reshape(*maps.shape[:-2], *size)


def mean_over_layers(maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Mean (..., H, W) of maps (..., h, w) of several layers, each brought to (H, W) first."""
    return torch.stack([resized(each, size) for each in maps]).mean(0)
