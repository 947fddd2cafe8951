"""IP-Adapter (Ye et al., 2023, arXiv 2308.06721): pictures as tokens, and attention to them of its own.

Every cross-attention gets a second pair of key and value projections for the picture's tokens i beside the text t:

    out = softmax(q kᵗ(t)ᵀ / √d) v(t) + s · softmax(q kⁱ(i)ᵀ / √d) vⁱ(i),   then the layer's own output projection.
"""
from __future__ import annotations

from typing import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

HEAD_WIDTH = 64  # of the resampler in every published file; its weights do not tell

Weights = Mapping[str, Tensor]


def projected_embeds(weights: Weights, embeds: Tensor) -> Tensor:
    """Base: tokens (B, M, d) = LayerNorm(Linear(embeds)), M tokens from one vector.

    weights: "proj.weight" (M · d, p), "proj.bias", "norm.weight" (d,), "norm.bias". embeds: (B, p).
    """
    tokens = F.linear(embeds, weights["proj.weight"], weights["proj.bias"])
    return _norm(weights, "norm", tokens.unflatten(-1, (-1, len(weights["norm.weight"]))))


def projected_patches(weights: Weights, states: Tensor) -> Tensor:
    """Full face: one token (B, T, d) for each of the T states = LayerNorm(Linear(gelu(Linear(state)))).

    weights: "proj.0", "proj.2" and "proj.3", each with weight and bias. states: (B, T, w).
    """
    hidden = F.gelu(F.linear(states, weights["proj.0.weight"], weights["proj.0.bias"]))
    return _norm(weights, "proj.3", F.linear(hidden, weights["proj.2.weight"], weights["proj.2.bias"]))


def resampled(weights: Weights, states: Tensor) -> Tensor:
    """Plus: M learned queries read the states in layers of attention and feed-forward; tokens (B, M, d).

    weights: "latents" (1, M, h), "proj_in", "proj_out", "norm_out", and for each layer i: "layers.i.0" (norm1, norm2,
    to_q, to_kv, to_out) and "layers.i.1" (0: norm, 1 and 3: linear). states: (B, T, w).
    """
    states = F.linear(states, weights["proj_in.weight"], weights["proj_in.bias"])
    latents = weights["latents"].expand(len(states), -1, -1)
    depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("layers."))
    for layer in (f"layers.{i}" for i in range(depth)):
        latents = latents + _perceived(weights, f"{layer}.0", states, latents)
        hidden = F.gelu(F.linear(_norm(weights, f"{layer}.1.0", latents), weights[f"{layer}.1.1.weight"]))
        latents = latents + F.linear(hidden, weights[f"{layer}.1.3.weight"])
    return _norm(weights, "norm_out", F.linear(latents, weights["proj_out.weight"], weights["proj_out.bias"]))


def _perceived(weights: Weights, name: str, states: Tensor, latents: Tensor) -> Tensor:
    """Attention of the latents to the states and to themselves."""
    latents = _norm(weights, f"{name}.norm2", latents)
    query = F.linear(latents, weights[f"{name}.to_q.weight"])
    both = torch.cat([_norm(weights, f"{name}.norm1", states), latents], dim=1)
    key, value = F.linear(both, weights[f"{name}.to_kv.weight"]).chunk(2, dim=-1)
    by_head = (part.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2) for part in (query, key, value))
    seen = F.scaled_dot_product_attention(*by_head)
    return F.linear(seen.transpose(1, 2).flatten(2), weights[f"{name}.to_out.weight"])


def _norm(weights: Weights, name: str, values: Tensor) -> Tensor:
    weight = weights[f"{name}.weight"]
    return F.layer_norm(values, weight.shape, weight, weights[f"{name}.bias"])
