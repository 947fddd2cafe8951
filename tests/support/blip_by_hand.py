"""BLIP-Diffusion's encoder and its text encoder, computed step by step from the weights, without the pack."""
from __future__ import annotations

import torch
from torch.nn import functional as F

from .attention_by_hand import naive_attention


def tokens_by_hand(w, pixels, ids, picture_heads, query_heads, eps):
    """(B, M, h) from Hugging Face's weights, pixel values and the tokens of the subject's name."""
    return torch.stack([_picture(w, picture, ids, picture_heads, query_heads, eps) for picture in pixels])


def text_by_hand(state, embeddings, heads):
    """(T, C): CLIP's text transformer, last layer after the final norm, of T word embeddings.

    state: weights of a SDClipModel's transformer.
    """
    x = embeddings + state["text_model.embeddings.position_embedding.weight"][:len(embeddings)]
    i = 0
    while f"text_model.encoder.layers.{i}.layer_norm1.weight" in state:
        layer = f"text_model.encoder.layers.{i}"
        n = _norm(state, f"{layer}.layer_norm1", x, 1e-5)
        query, key, value = (_linear(state, f"{layer}.self_attn.{part}_proj", n) for part in "qkv")
        seen = torch.cat([_attend(query[t:t + 1], key[:t + 1], value[:t + 1], heads) for t in range(len(x))])
        x = x + _linear(state, f"{layer}.self_attn.out_proj", seen)
        hidden = _linear(state, f"{layer}.mlp.fc1", _norm(state, f"{layer}.layer_norm2", x, 1e-5))
        x = x + _linear(state, f"{layer}.mlp.fc2", hidden * torch.sigmoid(1.702 * hidden))
        i += 1
    return _norm(state, "text_model.final_layer_norm", x, 1e-5)


def _picture(w, pixels, ids, picture_heads, query_heads, eps):
    kernel = w["visual_encoder.embeddings.patch_embedding.weight"]
    size = kernel.shape[-1]
    patches = [(kernel * pixels[None, :, y:y + size, x:x + size]).sum((1, 2, 3))
               for y in range(0, pixels.shape[1], size) for x in range(0, pixels.shape[2], size)]
    x = torch.stack([w["visual_encoder.embeddings.class_embedding"][0, 0], *patches])
    x = _norm(w, "visual_encoder.pre_layernorm", x + w["visual_encoder.embeddings.position_embedding"][0], eps)
    for i in range(3):
        layer = f"visual_encoder.encoder.layers.{i}"
        n = _norm(w, f"{layer}.layer_norm1", x, eps)
        query, key, value = _linear(w, f"{layer}.self_attn.qkv", n).chunk(3, -1)
        x = x + _linear(w, f"{layer}.self_attn.projection", _attend(query, key, value, picture_heads))
        hidden = _linear(w, f"{layer}.mlp.fc1", _norm(w, f"{layer}.layer_norm2", x, eps))
        x = x + _linear(w, f"{layer}.mlp.fc2", hidden * torch.sigmoid(1.702 * hidden))
    return _qformer(w, _norm(w, "visual_encoder.post_layernorm", x, eps), ids, query_heads)


def _qformer(w, states, ids, heads):
    table, places = w["embeddings.word_embeddings.weight"], w["embeddings.position_embeddings.weight"]
    words = torch.stack([table[token] + places[place] for place, token in enumerate(ids)])
    count = w["query_tokens"].shape[1]
    x = _norm(w, "embeddings.LayerNorm", torch.cat([w["query_tokens"][0], words]), 1e-12)
    for layer in (f"encoder.layer.{i}" for i in range(2)):
        x = _post_norm(w, f"{layer}.attention", x, x, heads)
        queries = _post_norm(w, f"{layer}.crossattention", x[:count], states, heads)
        parts = []
        for part, kind in ((queries, "_query"), (x[count:], "")):
            hidden = _linear(w, f"{layer}.intermediate{kind}.dense", part)
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2 ** 0.5))
            hidden = _linear(w, f"{layer}.output{kind}.dense", hidden)
            parts.append(_norm(w, f"{layer}.output{kind}.LayerNorm", hidden + part, 1e-12))
        x = torch.cat(parts)
    x = x[:count]
    hidden = _linear(w, "proj_layer.dense1", _norm(w, "proj_layer.LayerNorm", x, 1e-12))
    return x + _linear(w, "proj_layer.dense2", hidden * torch.sigmoid(1.702 * hidden))


def _post_norm(w, name, x, context, heads):
    query = _linear(w, f"{name}.attention.query", x)
    key, value = _linear(w, f"{name}.attention.key", context), _linear(w, f"{name}.attention.value", context)
    seen = _linear(w, f"{name}.output.dense", _attend(query, key, value, heads))
    return _norm(w, f"{name}.output.LayerNorm", seen + x, 1e-12)


def _attend(query, key, value, heads):
    probabilities = naive_attention(query[None], key[None], heads)[0]
    dim = query.shape[-1] // heads
    return torch.cat([probabilities[h] @ value[:, dim * h:dim * (h + 1)] for h in range(heads)], -1)


def _linear(w, name, x):
    return F.linear(x, w[f"{name}.weight"].float(), w[f"{name}.bias"].float())


def _norm(w, name, x, eps):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps) * w[f"{name}.weight"].float() + w[f"{name}.bias"].float()
