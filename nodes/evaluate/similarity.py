"""How far a concept's word and its context say the same (Diverse Context, Table 1)."""
from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..text.context_pairs import Pairs


def concept_context_similarity(outputs: Tensor, concept: Sequence[int], context: Sequence[int]) -> Tensor:
    """sim₁ = cos(c_*, c_b) of each context word b with the concept of the same prompt, (m,) in −1…1.

    outputs: (T, C) of the text encoder. concept: positions of the concept's vectors, over which the mean is taken.
    context: m positions.
    """
    ours, others = _wide(outputs[list(concept)]), _wide(outputs[list(context)])
    return F.cosine_similarity(ours[:, None], others[None], dim=-1).mean(0)


def context_similarity(outputs: Tensor, without: Tensor, pairs: Pairs) -> Tensor:
    """sim₂ = cos(c_b, ĉ_b) of each context word with itself in the prompt without the concept, (m,) in −1…1.

    outputs: (T, C), without: (T', C) of the text encoder. pairs: m positions (T, T').
    """
    ours, others = (list(positions) for positions in zip(*pairs))
    return F.cosine_similarity(_wide(outputs[ours]), _wide(without[others]), dim=-1)


def symmetric_divergence(concept: Tensor, context: Tensor) -> Tensor:
    """SKL = ½ D(A[:, *] ‖ A[:, b]) + ½ D(A[:, b] ‖ A[:, *]) of the concept's and each context word's map, (m,) in nats.

    concept: (P,), context: (m, P) cross-attention of P queries, each divided by its sum so that it is a distribution
    over the picture.
    """
    ours, others = _distribution(concept), _distribution(context)
    return ((ours - others) * (ours.log() - others.log())).sum(-1) / 2


def _distribution(maps: Tensor) -> Tensor:
    maps = maps.double().clamp_min(torch.finfo(torch.float32).tiny)
    return maps / maps.sum(-1, keepdim=True)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
