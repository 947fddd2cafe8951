"""Conditionings that hold every token twice, side by side: first for its key and then for its value.

CLIP NegPip encodes prompts so; the value of a word with a negative weight is its key times −1.
"""
from __future__ import annotations

from torch import Tensor


def in_pairs(cond: Tensor) -> bool:
    """Whether a conditioning (R, T, C) is one. Most of its pairs must be equal up to the sign, for an average with
    another conditioning may mix the others."""
    if cond.shape[1] % 2 or not cond.any():
        return False
    equal = (cond[:, 0::2].abs() == cond[:, 1::2].abs()).all(-1)
    return bool(equal.float().mean() > 0.5)


def token_count(cond: Tensor) -> int:
    """Tokens in a conditioning (R, T, C), those of pairs counted once; 0 if it was zeroed out and holds none."""
    if not cond.any():
        return 0
    return cond.shape[1] // 2 if in_pairs(cond) else cond.shape[1]


def keys_of(cond: Tensor) -> Tensor:
    """(R, tokens, C): each token of a conditioning once."""
    return cond[:, 0::2] if in_pairs(cond) else cond


def taken_apart(n: Tensor, context: Tensor, value: Tensor, options) -> tuple[Tensor, Tensor, Tensor]:
    """Attention patch (ModelPatcher.set_model_attn2_patch) for a context (R, T, C) of pairs, as CLIP NegPip's own."""
    return n, context[:, 0::2], value[:, 1::2]
