"""Softmax attention averaged over heads; the maps of single heads are not kept but computed again for gradients."""
from __future__ import annotations

from collections.abc import Callable, Iterator

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
        means = _wide(key.new_zeros(key.shape[:2]))
        for rows, pixels in _chunks(query, key, heads):
            probabilities = _probabilities(query[rows, pixels], key[rows], heads)
            means[rows] += probabilities.mean((1, 3)) * (probabilities.shape[3] / query.shape[1])
        return means

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        query, key = ctx.saved_tensors
        gradient = gradient[:, None, :, None] / (ctx.heads * query.shape[1])

        def of_scores(rows, pixels, probabilities):
            expected = gradient[rows].transpose(-1, -2) @ probabilities
            return probabilities.mul_(gradient[rows] - expected)

        return *_projection_gradients(query, key, ctx.heads, of_scores), None


class _ChosenKeys(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, heads: int, positions: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, positions)
        ctx.heads = heads
        found = _wide(query.new_empty(query.shape[0], positions.shape[1], query.shape[1]))
        for rows, pixels in _chunks(query, key, heads):
            probabilities = _probabilities(query[rows, pixels], key[rows], heads)
            found[rows, :, pixels] = _gather(probabilities, positions[rows]).mean(1)
        return found.transpose(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        query, key, positions = ctx.saved_tensors
        gradient = gradient.transpose(1, 2)[:, None] / ctx.heads

        def of_scores(rows, pixels, probabilities):
            chosen = _gather(probabilities, positions[rows]) * gradient[rows, ..., pixels]
            scores = probabilities.mul_(-chosen.sum(-2, keepdim=True))
            return scores.scatter_add_(-2, _index(positions[rows], scores), chosen)

        return *_projection_gradients(query, key, ctx.heads, of_scores), None, None


def _probabilities(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """(rows, heads, T, P), at least float32; each query's sum is 1. Pixels come last, for they are many: on a CPU this
    is twice as fast as a softmax over the short last axis."""
    query, key = _by_head(query, heads), _by_head(key, heads)
    with torch.autocast(query.device.type, enabled=False):
        scores = key * key.shape[-1] ** -0.5 @ query.transpose(-1, -2)
    scores.sub_(scores.amax(-2, keepdim=True)).exp_()
    return scores.div_(scores.sum(-2, keepdim=True))


def _projection_gradients(query: Tensor, key: Tensor, heads: int,
                          of_scores: Callable[[slice, slice, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Gradients of query and key. of_scores: those of the scaled scores (rows, heads, T, P) of some rows and pixels,
    given these and their probabilities, which it may change."""
    scale = (query.shape[2] // heads) ** -0.5
    to_query, to_key = torch.empty_like(query), _wide(torch.zeros_like(key))
    for rows, pixels in _chunks(query, key, heads):
        some = query[rows, pixels]
        scores = of_scores(rows, pixels, _probabilities(some, key[rows], heads))
        with torch.autocast(query.device.type, enabled=False):
            of_query = scores.transpose(-1, -2) @ (_by_head(key[rows], heads) * scale)
            of_key = scores @ (_by_head(some, heads) * scale)
        to_query[rows, pixels] = of_query.transpose(1, 2).flatten(2).to(query.dtype)
        to_key[rows] += of_key.transpose(1, 2).flatten(2)
    return to_query, to_key.to(key.dtype)


def _by_head(projected: Tensor, heads: int) -> Tensor:
    return _wide(projected).unflatten(-1, (heads, -1)).transpose(1, 2)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _gather(probabilities: Tensor, positions: Tensor) -> Tensor:
    return probabilities.gather(-2, _index(positions, probabilities))


def _index(positions: Tensor, scores: Tensor) -> Tensor:
    return positions[:, None, :, None].expand(-1, scores.shape[1], -1, scores.shape[3])


def _chunks(query: Tensor, key: Tensor, heads: int) -> Iterator[tuple[slice, slice]]:
    """Rows and pixels whose scores are computed at once: whole rows, or parts of one where there are many keys, as in a
    sequence that holds the picture too."""
    (count, pixels, _), of_pixel = query.shape, heads * key.shape[1]
    rows_at_once = max(1, SCORES_AT_ONCE // (of_pixel * pixels))
    pixels_at_once = max(1, min(pixels, SCORES_AT_ONCE // of_pixel))
    for row in range(0, count, rows_at_once):
        for pixel in range(0, pixels, pixels_at_once):
            yield slice(row, row + rows_at_once), slice(pixel, pixel + pixels_at_once)
