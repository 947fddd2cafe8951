"""IP-Adapter computed step by step from the weights of its file, without the pack."""
from __future__ import annotations

import contextlib

import torch
from torch.nn import functional as F

from .attention_by_hand import naive_attention

# Where the pairs of a file go: diffusers' order, written out. ComfyUI's blocks, with the transformer blocks of each.
SD15 = ([(("input", i), 1) for i in (1, 2, 4, 5, 7, 8)] + [(("output", i), 1) for i in range(3, 12)]
        + [(("middle", 0), 1)])
TINY_SDXL = ([(("input", 4), 1), (("input", 5), 1), (("input", 7), 2), (("input", 8), 2)]
             + [(("output", i), 2) for i in range(3)] + [(("output", i), 1) for i in range(3, 6)]
             + [(("middle", 0), 2)])


def blocks_in_file_order(unet, table):
    """(block, depth, BasicTransformerBlock) for every pair of a file."""
    from comfy.ldm.modules.attention import SpatialTransformer

    lists = {"input": unet.input_blocks, "output": unet.output_blocks, "middle": [unet.middle_block]}
    found = []
    for (name, index), depth in table:
        transformer = next(m for m in lists[name][index] if isinstance(m, SpatialTransformer))
        assert len(transformer.transformer_blocks) == depth
        found += [((name, index), i, transformer.transformer_blocks[i]) for i in range(depth)]
    return found


def tokens_by_hand(kind: str, weights, features):
    """(B, M, d), one picture at a time."""
    weights = {name: tensor.float() for name, tensor in weights.items()}
    return torch.stack([{"base": _base, "plus": _plus, "full": _full}[kind](weights, picture) for picture in features])


def _norm(x, weight, bias):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-5) * weight + bias


def _gelu(x):
    return 0.5 * x * (1 + torch.erf(x / 2 ** 0.5))


def _base(w, embed):
    width = len(w["norm.weight"])
    flat = w["proj.weight"] @ embed + w["proj.bias"]
    return torch.stack([_norm(flat[i:i + width], w["norm.weight"], w["norm.bias"]) for i in range(0, len(flat), width)])


def _full(w, states):
    hidden = _gelu(states @ w["proj.0.weight"].T + w["proj.0.bias"])
    return _norm(hidden @ w["proj.2.weight"].T + w["proj.2.bias"], w["proj.3.weight"], w["proj.3.bias"])


def _plus(w, states):
    x = states @ w["proj_in.weight"].T + w["proj_in.bias"]
    latents = w["latents"][0]
    for i in range(2):
        read = _norm(x, w[f"layers.{i}.0.norm1.weight"], w[f"layers.{i}.0.norm1.bias"])
        ask = _norm(latents, w[f"layers.{i}.0.norm2.weight"], w[f"layers.{i}.0.norm2.bias"])
        query = ask @ w[f"layers.{i}.0.to_q.weight"].T
        inner = query.shape[-1]
        key_value = torch.cat([read, ask]) @ w[f"layers.{i}.0.to_kv.weight"].T
        key, value = key_value[:, :inner], key_value[:, inner:]
        probabilities = naive_attention(query[None], key[None], inner // 64)[0]
        heads = [probabilities[h] @ value[:, 64 * h:64 * (h + 1)] for h in range(inner // 64)]
        latents = latents + torch.cat(heads, -1) @ w[f"layers.{i}.0.to_out.weight"].T
        hidden = _norm(latents, w[f"layers.{i}.1.0.weight"], w[f"layers.{i}.1.0.bias"])
        latents = latents + _gelu(hidden @ w[f"layers.{i}.1.1.weight"].T) @ w[f"layers.{i}.1.3.weight"].T
    return _norm(latents @ w["proj_out.weight"].T + w["proj_out.bias"], w["norm_out.weight"], w["norm_out.bias"])


@contextlib.contextmanager
def added_by_hand(model, table, content, rows_tokens, weight, output_gain=1.0):
    """While open, hooks add the attention to `rows_tokens` (one (M, d) per row of the U-Net) to every text attention of
    a U-Net that computes in float64.

    Where calls of the U-Net have different numbers of rows, `rows_tokens` holds such a list for each number.

    output_gain: what a patch after the layer multiplies its output by.
    """
    unet, hooks = model.get_model_object("diffusion_model"), []
    for number, (_, _, block) in enumerate(blocks_in_file_order(unet, table)):
        pair = [content["ip_adapter"][f"{2 * number + 1}.to_{part}_ip.weight"].double() for part in "kv"]
        inputs = []

        def add(to_out, _, output, attention=block.attn2, pair=pair, inputs=inputs):
            rows, = inputs
            inputs.clear()
            by_row = rows_tokens[len(rows)] if isinstance(rows_tokens, dict) else rows_tokens
            assert len(output) == len(rows) == len(by_row)
            result = []
            for n, out, tokens in zip(rows, output, by_row):
                query, (key, value) = F.linear(n, attention.to_q.weight), (tokens.double() @ w.T for w in pair)
                probabilities = naive_attention(query[None], key[None], attention.heads)[0]
                dim = query.shape[-1] // attention.heads
                seen = torch.cat([part @ value[:, dim * h:dim * (h + 1)] for h, part in enumerate(probabilities)], -1)
                result.append(out + weight * seen @ to_out[0].weight.T / output_gain)
            return torch.stack(result)

        hooks.append(block.attn2.to_q.register_forward_hook(lambda m, given, _, inputs=inputs: inputs.append(given[0])))
        hooks.append(block.attn2.to_out.register_forward_hook(add))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
