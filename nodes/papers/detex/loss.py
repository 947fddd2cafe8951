"""DETEX's attention loss, to be read beside the paper."""
from __future__ import annotations

import torch
from torch import Tensor


def attribute_error(maps: Tensor, masks: Tensor, normalised: bool = True, squared: bool = False) -> Tensor:
    """‖A − m‖ of Eq. 4 for each row, as mean over patches of |A − m|, or of (A − m)²: (B,).

    maps: attention to an attribute's word (B, P), mean over heads and layers, 0…1. masks: what it shall look at (B, P),
    0…1. normalised: A is divided by its largest value first, as the softmax over 77 tokens stays far below 1.
    """
    if normalised:
        maps = maps / maps.amax(-1, keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
    distance = maps - masks
    return (distance.square() if squared else distance.abs()).mean(-1)
