"""Softmax attention averaged over heads; the maps of single heads are not kept but computed again for gradients."""
from __future__ import annotations

import torch
from torch import Tensor

SCORES_AT_ONCE = 2 ** 24  # 64 MiB in float32


def mean_over_pixels(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """Attention that each key gets, mean over heads and queries: (rows, T) float32, every row sums to 1.

    query: (rows, P, heads · d); key: (rows or 1, T, heads · d). Scores are scaled by d^-½ as ComfyUI does.
    """
    return _MeanOverPixels.apply(query, key.expand(query.shape[0], -1, -1), heads)


def chosen_keys(query: Tensor, key: Tensor, heads: int, positions: Tensor) -> Tensor:
    """Attention of each query to some keys, mean over heads: (rows, P, n) float32.

    query: (rows, P, heads · d); key: (rows or 1, T, heads · d); positions: (rows, n) int64, indices of keys.
    """
    return _ChosenKeys.apply(query, key.expand(query.shape[0], -1, -1), heads, positions)


class _MeanOverPixels(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, heads: int) -> Tensor:
        ctx.save_for_backward(query, key)
        ctx.heads = heads
        return torch.cat([_probabilities(query[rows], key[rows], heads).mean((1, 3))
                          for rows in _row_chunks(query, key, heads)])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        query, key = ctx.saved_tensors
        gradient = gradient[:, None, :, None] / (ctx.heads * query.shape[1])
        parts = []
        for rows in _row_chunks(query, key, ctx.heads):
            probabilities = _probabilities(query[rows], key[rows], ctx.heads)
            expected = gradient[rows].transpose(-1, -2) @ probabilities
            scores = probabilities.mul_(gradient[rows] - expected)
            parts.append(_projection_gradients(scores, query[rows], key[rows], ctx.heads))
        return *(torch.cat(part) for part in zip(*parts)), None


class _ChosenKeys(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, heads: int, positions: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, positions)
        ctx.heads = heads
        return torch.cat([_gather(_probabilities(query[rows], key[rows], heads), positions[rows]).mean(1)
                          for rows in _row_chunks(query, key, heads)]).transpose(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        query, key, positions = ctx.saved_tensors
        gradient = gradient.transpose(1, 2)[:, None] / ctx.heads
        parts = []
        for rows in _row_chunks(query, key, ctx.heads):
            probabilities = _probabilities(query[rows], key[rows], ctx.heads)
            chosen = _gather(probabilities, positions[rows]) * gradient[rows]
            scores = probabilities.mul_(-chosen.sum(-2, keepdim=True))
            scores.scatter_add_(-2, _index(positions[rows], scores), chosen)
            parts.append(_projection_gradients(scores, query[rows], key[rows], ctx.heads))
        return *(torch.cat(part) for part in zip(*parts)), None, None


def _probabilities(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """(rows, heads, T, P), at least float32; each query's sum is 1. Pixels come last, for they are many: on a CPU this
    is twice as fast as a softmax over the short last axis."""
    query, key = _by_head(query, heads), _by_head(key, heads)
    with torch.autocast(query.device.type, enabled=False):
        scores = key * key.shape[-1] ** -0.5 @ query.transpose(-1, -2)
    scores.sub_(scores.amax(-2, keepdim=True)).exp_()
    return scores.div_(scores.sum(-2, keepdim=True))


def _projection_gradients(scores: Tensor, query: Tensor, key: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Gradients of query and key from those of the scaled scores (rows, heads, T, P)."""
    query_heads, key_heads = _by_head(query, heads), _by_head(key, heads)
    scale = query_heads.shape[-1] ** -0.5
    with torch.autocast(query.device.type, enabled=False):
        to_query, to_key = scores.transpose(-1, -2) @ (key_heads * scale), scores @ (query_heads * scale)
    return (to_query.transpose(1, 2).reshape(query.shape).to(query.dtype),
            to_key.transpose(1, 2).reshape(key.shape).to(key.dtype))


def _by_head(projected: Tensor, heads: int) -> Tensor:
    wide = projected.to(torch.promote_types(projected.dtype, torch.float32))
    return wide.unflatten(-1, (heads, -1)).transpose(1, 2)


def _gather(probabilities: Tensor, positions: Tensor) -> Tensor:
    return probabilities.gather(-2, _index(positions, probabilities))


def _index(positions: Tensor, scores: Tensor) -> Tensor:
    return positions[:, None, :, None].expand(-1, scores.shape[1], -1, scores.shape[3])


def _row_chunks(query: Tensor, key: Tensor, heads: int) -> list[slice]:
    size = max(1, SCORES_AT_ONCE // (heads * query.shape[1] * key.shape[1]))
    return [slice(start, start + size) for start in range(0, query.shape[0], size)]
