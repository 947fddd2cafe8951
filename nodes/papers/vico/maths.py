"""The formulas of ViCo (arXiv 2306.00971), and where the authors' code (github.com/haoosz/ViCo, 4ac2463) differs.

A *map* is how much each of P patches of the reference attends to the subject's word: the mean over the heads of
softmax(QKᵀ/√d), the column of S*.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ...attention.masks import otsu

Variant = Literal["paper", "released", "none"]

CANDIDATES = 10  # thresholds that the authors' code tries


def object_mask(maps: Tensor, variant: Variant) -> Tensor | None:
    """M̂ of §3.3: which patches show the subject, bool (..., P), from maps (..., P).

    "paper": above Otsu's threshold. "released": as `released_mask`. "none": no mask. A map without contrast hides
    nothing.
    """
    if variant == "none":
        return None
    maps = maps.detach()
    found = otsu(maps[..., None, :])[..., 0, :] if variant == "paper" else released_mask(maps)
    return found | ~found.any(-1, keepdim=True)


def released_mask(maps: Tensor) -> Tensor:
    """The authors' Otsu: bool (..., P), where a map on a scale from 0 to 1 reaches the best of 0, 0.1, …, 0.9.

    The best is the first to maximise w₀ · w₁ · (μ₀ − μ₁)²; thresholds that leave a class empty do not count.
    """
    low, high = maps.amin(-1, keepdim=True), maps.amax(-1, keepdim=True)
    scaled = (maps - low) / (high - low)
    thresholds = torch.arange(CANDIDATES, device=maps.device, dtype=scaled.dtype) / CANDIDATES
    above = (scaled[..., None, :] >= thresholds[:, None]).to(scaled.dtype)
    inside, values = above.mean(-1), scaled[..., None, :]
    outside = 1 - inside
    distance = (above * values).mean(-1) / inside - ((1 - above) * values).mean(-1) / outside
    between = torch.where((inside > 0) & (outside > 0), inside * outside * distance.square(), -1.0)
    return scaled >= thresholds[between.argmax(-1, keepdim=True)]


def given_mask(covered: Tensor, variant: Variant) -> Tensor:
    """A person's mask as an object mask, from the share (..., P) of each patch that it covers.

    The share is kept as weight, but "released" needs yes or no: at least half of the largest share.
    """
    return covered >= covered.amax(-1, keepdim=True) / 2 if variant == "released" else covered


def scaled_dot_product(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """softmax(QKᵀ/√d + mask) V, each (R, …, heads · d); mask (R or 1, 1, K) or None."""
    by_head = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, key, value))
    found = F.scaled_dot_product_attention(*by_head, attn_mask=None if mask is None else mask[:, None])
    return found.transpose(1, 2).flatten(2)


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None,
              variant: Variant = "paper", attend: Callable[..., Tensor] = scaled_dot_product) -> Tensor:
    """Attention of the picture to the reference, (R, Q, heads · d).

    query: (R, Q, heads · d); key, value: (R or 1, K, heads · d); mask: (R or 1, K) in 0…1 or bool, 1 on the subject.
    attend: computes as `scaled_dot_product` does.
    Eq. 5: (M̂ ⊙ softmax(QKᵀ/√d)) V, so that what lies outside adds nothing. "released": patches outside are left out
    of the softmax, so that the others share all of the attention.
    """
    before_softmax = None
    if mask is not None and variant == "released":
        before_softmax = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask.bool(), -math.inf)[:, None]
    elif mask is not None:
        value = value * mask.to(value.dtype)[..., None]
    key, value = (t.expand(len(query), -1, -1) for t in (key, value))
    return attend(query, key, value, heads, mask=before_softmax)


def end_of_text_regularisation(subject: Tensor, end: Tensor) -> Tensor:
    """L_reg of Eq. 6 for one layer: scalar, mean over patches and rows as in the authors' code.

    subject, end: maps (B, P) of S* and of the end-of-text token, each divided by its largest value. The end-of-text
    side gets no gradient.
    """
    return alignment(subject, _scaled_by_max(end.detach()))


def alignment(subject: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference between the map of S* (B, P), divided by its largest value, and a target (B, P) in 0…1.

    With a mask as target this is the alignment that Fig. 9 compares with masking.
    """
    return F.mse_loss(_scaled_by_max(subject), target.to(subject.dtype))


def _scaled_by_max(maps: Tensor) -> Tensor:
    return maps / maps.amax(-1, keepdim=True)
