"""Cross-attention computed one head at a time, from projections seen by hooks of the tests' own."""
from __future__ import annotations

import contextlib

import torch


def naive_attention(query: torch.Tensor, key: torch.Tensor, heads: int) -> torch.Tensor:
    """(rows, heads, pixels, tokens) from query (rows, pixels, width) and key (rows or 1, tokens, width)."""
    rows, pixels, width = query.shape
    dim, tokens = width // heads, key.shape[1]
    result = torch.zeros(rows, heads, pixels, tokens, dtype=query.dtype)
    for head in range(heads):
        part = slice(head * dim, (head + 1) * dim)
        scores = torch.einsum("bpd,btd->bpt", query[..., part], key[..., part].expand(rows, -1, -1)) / dim ** 0.5
        weights = torch.exp(scores)
        result[:, head] = weights / weights.sum(-1, keepdim=True)
    return result


@contextlib.contextmanager
def projections(unet):
    """List of (heads, [query, key]) of every cross-attention in the order in which they run."""
    from comfy.ldm.modules.attention import BasicTransformerBlock

    seen, hooks = [], []
    for block in (m for m in unet.modules() if isinstance(m, BasicTransformerBlock)):
        kept = []

        def on_query(module, inputs, output, kept=kept, heads=block.attn2.heads):
            kept.append(output.detach())
            seen.append((heads, kept))

        hooks.append(block.attn2.to_q.register_forward_hook(on_query))
        hooks.append(block.attn2.to_k.register_forward_hook(lambda m, a, out, kept=kept: kept.append(out.detach())))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
