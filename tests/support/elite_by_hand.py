"""ELITE computed step by step from its two files, without the pack."""
from __future__ import annotations

import contextlib

import torch
from torch.nn import functional as F

from tiny.elite import PLACES

from .attention_by_hand import naive_attention


def word_by_hand(weights, states):
    """(B, 1, d) from the states (B, 1 + P, w) of CLIP Vision's last layer."""
    rows = []
    for picture in states:
        patches = [_perceptron(weights, "mapping_patch_0", patch) for patch in picture[1:]]
        rows.append(_perceptron(weights, "mapping_0", picture[0]) + sum(patches) / len(patches))
    return torch.stack(rows)[:, None]


def patches_by_hand(weights, states, mask):
    """(B, P, d) from five sets of states and the mask (B, P)."""
    result = []
    for picture in range(len(mask)):
        patches = []
        for place in range(mask.shape[1]):
            seen = [_perceptron(weights, f"mapping_{i}", layer[picture, 0])
                    + _perceptron(weights, f"mapping_patch_{i}", layer[picture, 1 + place])
                    for i, layer in enumerate(states)]
            patches.append(sum(seen) / 5 * mask[picture, place])
        result.append(torch.stack(patches))
    return torch.stack(result)


def _perceptron(w, name, x):
    for number in (0, 3):
        x = w[f"{name}.{number}.weight"] @ x + w[f"{name}.{number}.bias"]
        x = (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-5)
        x = x * w[f"{name}.{number + 1}.weight"] + w[f"{name}.{number + 1}.bias"]
        x = torch.where(x > 0, x, 0.01 * x)
    return w[f"{name}.6.weight"] @ x + w[f"{name}.6.bias"]


@contextlib.contextmanager
def elite_by_hand(model, original, of_word, of_patches, rows, local_strength, output_gain=1.0, text_strength=1.0):
    """While open, hooks make every cross-attention of the U-Net, which computes in float64, ELITE's.

    original: the unpatched weights by key; what a LoRA added to them is added to ELITE's too.
    rows: for each row of the U-Net (position of the word, patches (P, d)), or None for a row without the picture.
    output_gain: what a patch after the layer multiplies its output by.
    """
    unet, hooks = model.get_model_object("diffusion_model"), []
    lists = {"input": unet.input_blocks, "output": unet.output_blocks, "middle": [unet.middle_block]}
    for name, (kind, index) in PLACES.items():
        block = lists[kind][index][1].transformer_blocks[0]
        key = f"diffusion_model.{kind}_block{'' if kind == 'middle' else f's.{index}'}.1.transformer_blocks.0.attn2"
        prefix = f"{name}_transformer_blocks_0_attn2"
        own = {part: original[f"{key}.{part}.weight"].double() for part in ("to_k", "to_v")}
        text = {part: text_strength * of_word[f"{prefix}_{part}.weight"].double() + (1 - text_strength) * own[part]
                for part in own}
        local = [of_patches[f"{prefix}_{part}.weight"].double() for part in ("to_k", "to_v")]
        hooks += _layer(block, own, text, local, rows, local_strength / output_gain)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _layer(block, own, text, local, rows, weight):
    attention, inputs = block.attn2, {}

    def weight_of(part):  # ELITE's, and what a LoRA has added
        return text[part] + getattr(attention, part).weight.double() - own[part]

    def keep_context(module, args, kwargs):
        inputs["context"] = kwargs.get("context", args[1] if len(args) > 1 else None)

    def projected(part):
        return lambda module, given, output: F.linear(given[0], weight_of(part))

    def keep_rows(module, given, output):
        inputs["n"] = given[0]

    def add(to_out, given, output):
        assert len(output) == len(rows)
        heads, result = attention.heads, []
        for row, n, context, out in zip(rows, inputs["n"], inputs["context"], output):
            if row is not None:
                position, patches = row
                query = F.linear(n, attention.to_q.weight)[None]
                column = naive_attention(query, F.linear(context, weight_of("to_k"))[None], heads)[0, :, :, position]
                key, value = (patches.double() @ w.T for w in local)
                seen = naive_attention(query, key[None], heads)[0] * (column / column.max())[..., None]
                dim = query.shape[-1] // heads
                both = torch.cat([seen[h] @ value[:, dim * h:dim * (h + 1)] for h in range(heads)], -1)
                out = out + weight * both @ to_out[0].weight.T
            result.append(out)
        return torch.stack(result)

    return [block.register_forward_pre_hook(keep_context, with_kwargs=True),
            attention.to_q.register_forward_hook(keep_rows),
            *(getattr(attention, part).register_forward_hook(projected(part)) for part in own),
            attention.to_out.register_forward_hook(add)]
