"""IP-Adapter (Ye et al., 2023, arXiv 2308.06721): pictures as tokens, and attention to them of its own.

Every cross-attention gets a second pair of key and value projections for the picture's tokens i beside the text t:

    out = softmax(q kᵗ(t)ᵀ / √d) v(t) + s · softmax(q kⁱ(i)ᵀ / √d) vⁱ(i),   then the layer's own output projection.
"""
from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

HEAD_WIDTH = 64  # of the resampler in every published file; its weights do not tell

Weights = Mapping[str, Tensor]


def projected_embeds(weights: Weights, embeds: Tensor) -> Tensor:
    """Base: tokens (B, M, d) = LayerNorm(Linear(embeds)), M tokens from one vector.

    weights: "proj.weight" (M · d, p), "proj.bias", "norm.weight" (d,), "norm.bias". embeds: (B, p).
    """
    tokens = _linear(weights, "proj", embeds)
    return _norm(weights, "norm", tokens.unflatten(-1, (-1, len(weights["norm.weight"]))))


def projected_patches(weights: Weights, states: Tensor) -> Tensor:
    """Full face: one token (B, T, d) for each of the T states = LayerNorm(Linear(gelu(Linear(state)))).

    weights: "proj.0", "proj.2" and "proj.3", each with weight and bias. states: (B, T, w).
    """
    return _norm(weights, "proj.3", _linear(weights, "proj.2", F.gelu(_linear(weights, "proj.0", states))))


def resampled(weights: Weights, states: Tensor) -> Tensor:
    """Plus: M learned queries read the states in layers of attention and feed-forward; tokens (B, M, d).

    weights: "latents" (1, M, h), "proj_in", "proj_out", "norm_out", and for each layer i: "layers.i.0" (norm1, norm2,
    to_q, to_kv, to_out) and "layers.i.1" (0: norm, 1 and 3: linear). states: (B, T, w).
    """
    states = _linear(weights, "proj_in", states)
    latents = weights["latents"].to(states).expand(len(states), -1, -1)
    depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("layers."))
    for layer in (f"layers.{i}" for i in range(depth)):
        latents = latents + _perceived(weights, f"{layer}.0", states, latents)
        hidden = F.gelu(_mapped(weights, f"{layer}.1.1", _norm(weights, f"{layer}.1.0", latents)))
        latents = latents + _mapped(weights, f"{layer}.1.3", hidden)
    return _norm(weights, "norm_out", _linear(weights, "proj_out", latents))


def _perceived(weights: Weights, name: str, states: Tensor, latents: Tensor) -> Tensor:
    """Attention of the latents to the states and to themselves."""
    latents = _norm(weights, f"{name}.norm2", latents)
    query = _mapped(weights, f"{name}.to_q", latents)
    both = torch.cat([_norm(weights, f"{name}.norm1", states), latents], dim=1)
    key, value = _mapped(weights, f"{name}.to_kv", both).chunk(2, dim=-1)
    by_head = (part.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2) for part in (query, key, value))
    seen = F.scaled_dot_product_attention(*by_head)
    return _mapped(weights, f"{name}.to_out", seen.transpose(1, 2).flatten(2))


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"].to(x), weights[f"{name}.bias"].to(x))


def _mapped(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Without a bias."""
    return F.linear(x, weights[f"{name}.weight"].to(x))


def _norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    weight = weights[f"{name}.weight"].to(x)
    return F.layer_norm(x, weight.shape, weight, weights[f"{name}.bias"].to(x))
