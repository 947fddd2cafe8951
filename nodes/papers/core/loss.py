"""CoRe's two losses: a new word must leave its context as the class word would.

Indices pair context tokens of the object prompt (with S*) and of the reference prompt (with the class words): start,
every word and first end token; neither S*, nor the class words, nor padding.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ...text.context_pairs import Pairs

RELEASED_BATCH = 6


def context_embedding_loss(object_: Tensor, reference: Tensor, pairs: Sequence[Pairs],
                           axis: Literal["feature", "token"] = "feature") -> Tensor:
    """Mean cosine distance of the context tokens' output embeddings (CoRe Eq. 3), mean over rows, 0…2.

    object_: (R, T, C); reference: (R or 1, T', C). pairs: per row, or one for all rows.
    axis: "feature" is Eq. 3, Σ_i (1 − cos(E(v_i), E(v'_i))) / m; "token" is what the authors' code computes: for each
        of the C features one cosine over the m tokens.
    """
    dim = {"feature": -1, "token": -2}[axis]

    def distance(ours: Tensor, theirs: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(ours, theirs, dim=dim).mean(-1)

    return _mean_over_rows(distance, _wide(object_), _wide(reference), pairs)


def context_attention_loss(object_means: Sequence[Tensor], reference_means: Sequence[Tensor], pairs: Sequence[Pairs],
                           formula: Literal["paper", "released"] = "paper") -> Tensor:
    """Mean squared difference of how much attention the context tokens get (CoRe Eq. 4), mean over rows.

    object_means: per layer (R, T), attention to each token, mean over heads and pixels; reference_means: per layer
        (R or 1, T'). pairs: per row, or one for all rows.
    formula: "paper" is Eq. 4, Σ_i (μ(M_i) − μ(M'_i))² / m with μ over all layers, each counting the same; "released" is
        what the authors' code computes: the squares of each layer, mean over layers, summed over their batch of 6 rows.
        The sum is taken as 6 times the mean, so that it does not change with the batch size.
    """
    ours, theirs = (_wide(torch.stack(tuple(means), dim=-1)) for means in (object_means, reference_means))
    if formula == "paper":
        ours, theirs = ours.mean(-1, keepdim=True), theirs.mean(-1, keepdim=True)

    def difference(ours: Tensor, theirs: Tensor) -> Tensor:
        return (ours - theirs).square().mean((-2, -1))

    loss = _mean_over_rows(difference, ours, theirs, pairs)
    return loss * RELEASED_BATCH if formula == "released" else loss


def _mean_over_rows(distance, ours: Tensor, theirs: Tensor, pairs: Sequence[Pairs]) -> Tensor:
    """Mean of `distance` (rows, m, features)² → (rows,) over the paired tokens of all rows."""
    theirs = theirs.expand(len(ours), *theirs.shape[1:])
    if len(pairs) == 1:
        rows = [slice(None)]
    else:
        rows = [slice(i, i + 1) for i in range(len(ours))]
    distances = []
    for row, paired in zip(rows, pairs, strict=True):
        mine, other = torch.tensor(paired, device=ours.device).unbind(1)
        distances.append(distance(ours[row, mine], theirs[row, other]))
    return torch.cat(distances).mean()


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
