"""BLIP-Diffusion's picture encoder (Li et al., 2023, arXiv 2305.14720): a picture and its subject's name as 16 tokens.

A CLIP vision transformer sees the picture; a BERT with learned queries, the Q-Former, reads what it saw beside the name
of the subject; a small network projects the queries into the space of CLIP's word embeddings.

Weights have the names of the Hugging Face layout and may be of any dtype on any device; they are copied to where the
computation runs when they are needed, so that the memory there holds one matrix at a time.
"""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

QFORMER_EPS = 1e-12

Weights = Mapping[str, Tensor]


def quick_gelu(x: Tensor) -> Tensor:
    """x · sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": F.gelu}


def depth_of(weights: Weights, prefix: str) -> int:
    """Number of layers whose names begin with `prefix` and a number of up to three digits."""
    places = [name.removeprefix(prefix).partition(".")[0] for name in weights if name.startswith(prefix)]
    return 1 + max((int(place) for place in places if re.fullmatch("[0-9]{1,3}", place)), default=-1)


def picture_states(weights: Weights, pixels: Tensor, heads: int, eps: float, activation: str) -> Tensor:
    """What the vision transformer sees: (B, 1 + patches, w).

    pixels: (B, 3, side, side), normalised. eps: of the layer norms. activation: one of ACTIVATIONS.
    """
    patch = weights["visual_encoder.embeddings.patch_embedding.weight"].to(pixels)
    patches = F.conv2d(pixels, patch, stride=patch.shape[-1]).flatten(2).transpose(1, 2)
    first = weights["visual_encoder.embeddings.class_embedding"].to(pixels).expand(len(pixels), 1, -1)
    x = torch.cat([first, patches], dim=1) + weights["visual_encoder.embeddings.position_embedding"].to(pixels)
    x = _norm(weights, "visual_encoder.pre_layernorm", x, eps)
    for i in range(depth_of(weights, "visual_encoder.encoder.layers.")):
        layer = f"visual_encoder.encoder.layers.{i}"
        qkv = _linear(weights, f"{layer}.self_attn.qkv", _norm(weights, f"{layer}.layer_norm1", x, eps))
        x = x + _linear(weights, f"{layer}.self_attn.projection", _attention(*qkv.chunk(3, dim=-1), heads))
        hidden = _linear(weights, f"{layer}.mlp.fc1", _norm(weights, f"{layer}.layer_norm2", x, eps))
        x = x + _linear(weights, f"{layer}.mlp.fc2", ACTIVATIONS[activation](hidden))
    return _norm(weights, "visual_encoder.post_layernorm", x, eps)


def query_states(weights: Weights, states: Tensor, ids: Sequence[int], heads: int) -> Tensor:
    """What the Q-Former's M queries found out: (B, M, h).

    states: (B, T, w) of the picture. ids: tokens of the subject's name, with [CLS] and [SEP].
    """
    words = weights["embeddings.word_embeddings.weight"][list(ids)]
    words = words + weights["embeddings.position_embeddings.weight"][:len(ids)]
    queries = weights["query_tokens"]
    x = torch.cat([queries, words[None]], dim=1).to(states).expand(len(states), -1, -1)
    x = _norm(weights, "embeddings.LayerNorm", x, QFORMER_EPS)
    for i in range(depth_of(weights, "encoder.layer.")):
        x = _qformer_layer(weights, f"encoder.layer.{i}", x, queries.shape[1], states, heads)
    return x[:, :queries.shape[1]]


def projected(weights: Weights, queries: Tensor) -> Tensor:
    """Visual tokens (B, M, h) in the space of CLIP's word embeddings, for queries (B, M, h)."""
    hidden = _linear(weights, "proj_layer.dense1", _norm(weights, "proj_layer.LayerNorm", queries, QFORMER_EPS))
    return queries + _linear(weights, "proj_layer.dense2", quick_gelu(hidden))


def _qformer_layer(weights: Weights, layer: str, x: Tensor, count: int, states: Tensor, heads: int) -> Tensor:
    """Queries and words attend to each other; the first `count` positions, the queries, also to the picture."""
    x = _attended(weights, f"{layer}.attention", x, x, heads)
    queries, words = x[:, :count], x[:, count:]
    if f"{layer}.crossattention.attention.query.weight" in weights:
        queries = _attended(weights, f"{layer}.crossattention", queries, states, heads)
    queries, words = _feed_forward(weights, layer, queries, "_query"), _feed_forward(weights, layer, words, "")
    return torch.cat([queries, words], dim=1)


def _attended(weights: Weights, name: str, x: Tensor, context: Tensor, heads: int) -> Tensor:
    query = _linear(weights, f"{name}.attention.query", x)
    key, value = (_linear(weights, f"{name}.attention.{part}", context) for part in ("key", "value"))
    seen = _linear(weights, f"{name}.output.dense", _attention(query, key, value, heads))
    return _norm(weights, f"{name}.output.LayerNorm", seen + x, QFORMER_EPS)


def _feed_forward(weights: Weights, layer: str, x: Tensor, kind: str) -> Tensor:
    hidden = F.gelu(_linear(weights, f"{layer}.intermediate{kind}.dense", x))
    return _norm(weights, f"{layer}.output{kind}.LayerNorm",
                 _linear(weights, f"{layer}.output{kind}.dense", hidden) + x, QFORMER_EPS)


def _attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    by_head = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(*by_head).transpose(1, 2).flatten(2)


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"].to(x), weights[f"{name}.bias"].to(x))


def _norm(weights: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"].to(x), weights[f"{name}.bias"].to(x), eps)
