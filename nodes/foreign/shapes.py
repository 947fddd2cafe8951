"""Tensors as files describe them, before any memory is given to them."""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

MOST_TENSORS = 20_000
MOST_AXES = 8
MOST_LETTERS = 1_000  # of a tensor's name
_LARGEST = 2**48


def check_shape(shape: Sequence[Any]) -> None:
    """Raises ValueError unless the shape is one that a tensor of a file can have."""
    if len(shape) > MOST_AXES or any(type(size) is not int or size < 0 for size in shape):
        raise ValueError("a tensor has an impossible shape")
    if math.prod(max(size, 1) for size in shape) > _LARGEST:
        raise ValueError("a tensor has an impossible shape")


def item_size(dtype: torch.dtype) -> int:
    """Bytes of one value."""
    return torch.empty((), dtype=dtype).element_size()


def known_dtypes(names: dict[str, str]) -> dict[str, torch.dtype]:
    """A format's name → dtype, of those that this torch has."""
    return {name: getattr(torch, ours) for name, ours in names.items() if hasattr(torch, ours)}
