"""ELITE (Wei et al., 2023, arXiv 2302.13848): a picture as a word of the prompt and as local patches.

Global mapper: what CLIP Vision's last layer sees becomes one word embedding w. Local mapper: what five of its layers
see of the masked subject becomes patches l. In every cross-attention, with keys and values that were trained for it,

    out = A(q, text) + λ · m ⊙ softmax(q kˡ(l)ᵀ / √d) vˡ(l),

m being the text attention's column of the word w, per head and pixel, divided by its largest value.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

LAYERS = (-1, 3, 7, 11, 15)  # of CLIP Vision, in the mappers' order; the last layer is -1, the first 0

Weights = Mapping[str, Tensor]


def mapped_word(weights: Weights, states: Tensor) -> Tensor:
    """The word (B, 1, d) from the states (B, 1 + P, w) of the last layer: class token and mean of the patches."""
    return (_perceptron(weights, "mapping_0", states[:, :1])
            + _perceptron(weights, "mapping_patch_0", states[:, 1:]).mean(1, keepdim=True))


def mapped_patches(weights: Weights, states: Sequence[Tensor], mask: Tensor) -> Tensor:
    """The local patches (B, P, d) from the states (B, 1 + P, w) of the five layers, mean over the layers.

    mask: (B, P), 1 for the subject; other patches become zero vectors, which keep their share of the softmax.
    """
    layers = [_perceptron(weights, f"mapping_{i}", seen[:, :1])
              + _perceptron(weights, f"mapping_patch_{i}", seen[:, 1:]) for i, seen in enumerate(states)]
    return torch.stack(layers).mean(0) * mask[..., None]


def word_attention(query: Tensor, key: Tensor, heads: int, positions: Sequence[int]) -> Tensor:
    """m: attention of each pixel to the tokens at `positions`, divided by its largest value in each image.

    query: (B, P, heads · d). key: (B, T, heads · d). Returns (B, P, heads, 1), in 0…1. As released the largest value is
    that of the whole batch; for one image it is the same.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    by_head = [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key)]
    column = torch.stack([(q.to(wide) @ k.to(wide).mT * q.shape[-1] ** -0.5).softmax(-1)[..., list(positions)].sum(-1)
                          for q, k in zip(*by_head)])
    return (column / column.amax((1, 2), keepdim=True)).mT[..., None].to(query.dtype)


def _perceptron(weights: Weights, name: str, x: Tensor) -> Tensor:
    for number in (0, 3):
        x = F.linear(x, weights[f"{name}.{number}.weight"].to(x), weights[f"{name}.{number}.bias"].to(x))
        norm, bias = (weights[f"{name}.{number + 1}.{part}"].to(x) for part in ("weight", "bias"))
        x = F.leaky_relu(F.layer_norm(x, norm.shape, norm, bias))
    return F.linear(x, weights[f"{name}.6.weight"].to(x), weights[f"{name}.6.bias"].to(x))
