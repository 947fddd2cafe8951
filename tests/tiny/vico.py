"""ViCo's image blocks as the authors' files hold them."""
from __future__ import annotations

import torch

TINY_SD15 = {4: 64, 6: 32, 8: 32, 10: 32}  # output block → width, of the tiny SD1.5


def official_tensors(widths: dict[int, int], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tensors of a cross_attention file with names and shapes of github.com/haoosz/ViCo.

    widths: output block → width d.
    """
    found, draw = {}, torch.Generator().manual_seed(seed)
    for block, d in widths.items():
        shapes = {f"attn{i}.{name}": (d, d) for i in (1, 2) for name in ("to_q.weight", "to_k.weight", "to_v.weight",
                                                                         "to_out.0.weight")}
        shapes |= {f"attn{i}.to_out.0.bias": (d,) for i in (1, 2)}
        shapes |= {"ff.net.0.proj.weight": (8 * d, d), "ff.net.0.proj.bias": (8 * d,), "ff.net.2.weight": (d, 4 * d),
                   "ff.net.2.bias": (d,)}
        shapes |= {f"norm{i}.{name}": (d,) for i in (1, 2, 3) for name in ("weight", "bias")}
        found |= {f"diffusion_model.output_blocks.{block}.1.image_cross_attention.{name}":
                  0.05 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    return found
