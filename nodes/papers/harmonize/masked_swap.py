"""Equation 5: self-attention with the keys and values of another process inside a mask, its own outside."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ChosenPixels:
    """Pixels inside a mask, as many per row as the fullest row has.

    index: (rows, k) places in the sequence of pixels. weight: (rows, k) mask value there, 0 where a row has fewer.
    """

    index: Tensor
    weight: Tensor

    def to(self, like: Tensor) -> ChosenPixels:
        """On the device and in the type of another tensor."""
        return ChosenPixels(self.index.to(like.device), self.weight.to(like))


def pixels_inside(mask: Tensor) -> ChosenPixels | None:
    """Pixels of a mask m (rows, pixels) in 0..1 that are not 0; None if there are none."""
    count = int((mask > 0).sum(-1).max())
    if not count:
        return None
    weight, index = mask.topk(count, dim=-1)
    return ChosenPixels(index, weight)


def masked_swap(own: Tensor, queries: Tensor, attend: Callable[[Tensor], Tensor], inside: ChosenPixels) -> Tensor:
    """softmax(QK'ᵀ/√d)V' · m + softmax(QKᵀ/√d)V · (1 − m), of shape (rows, pixels, channels) like `own`.

    own: softmax(QKᵀ/√d)V, the process's own attention. queries: what its queries Q are projected from, same shape.
    attend: gives softmax(QK'ᵀ/√d)V' for queries (rows, k, channels). A query's attention does not depend on the other
    queries, so that of the other process is computed inside the mask alone.
    """
    index = inside.index[..., None].expand(-1, -1, own.shape[-1])
    kept = own.gather(1, index)
    swapped = attend(queries.gather(1, index))
    return own.scatter(1, index, torch.lerp(kept, swapped.to(kept), inside.weight[..., None]))
