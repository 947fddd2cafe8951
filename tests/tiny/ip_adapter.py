"""Small random IP-Adapters in the layout of the published files."""
from __future__ import annotations

from collections.abc import Sequence

import torch

KINDS = ("base", "plus", "full")
INNER, DEPTH, QUERIES, TOKENS = 128, 2, 5, 4


def state_dict(kind: str, vision_width: int, text_width: int, channels: Sequence[int], seed: int = 0
               ) -> dict[str, dict[str, torch.Tensor]]:
    """{"image_proj": …, "ip_adapter": …}, fp16, as in a .bin file.

    vision_width: of what CLIP Vision gives. channels: of every cross-attention layer in the files' order.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = {"base": _base, "plus": _plus, "full": _full}[kind](vision_width, text_width)
    projection = {name: _fill(name, shape, generator) for name, shape in shapes.items()}
    attention = {f"{2 * i + 1}.to_{part}_ip.weight": _fill("weight", (width, text_width), generator)
                 for i, width in enumerate(channels) for part in "kv"}
    return {"image_proj": projection, "ip_adapter": attention}


def flat(content: dict[str, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """As in a .safetensors file."""
    return {f"{part}.{name}": tensor for part, tensors in content.items() for name, tensor in tensors.items()}


def _base(vision: int, text: int) -> dict[str, tuple[int, ...]]:
    return {"proj.weight": (TOKENS * text, vision), "proj.bias": (TOKENS * text,), "norm.weight": (text,),
            "norm.bias": (text,)}


def _full(vision: int, text: int) -> dict[str, tuple[int, ...]]:
    return {"proj.0.weight": (vision, vision), "proj.0.bias": (vision,), "proj.2.weight": (text, vision),
            "proj.2.bias": (text,), "proj.3.weight": (text,), "proj.3.bias": (text,)}


def _plus(vision: int, text: int) -> dict[str, tuple[int, ...]]:
    hidden = 48
    shapes = {"latents": (1, QUERIES, hidden), "proj_in.weight": (hidden, vision), "proj_in.bias": (hidden,),
              "proj_out.weight": (text, hidden), "proj_out.bias": (text,), "norm_out.weight": (text,),
              "norm_out.bias": (text,)}
    for layer in (f"layers.{i}" for i in range(DEPTH)):
        norms = {f"{layer}.{norm}.{part}": (hidden,) for norm in ("0.norm1", "0.norm2", "1.0")
                 for part in ("weight", "bias")}
        shapes |= norms | {f"{layer}.0.to_q.weight": (INNER, hidden), f"{layer}.0.to_kv.weight": (2 * INNER, hidden),
                           f"{layer}.0.to_out.weight": (hidden, INNER), f"{layer}.1.1.weight": (4 * hidden, hidden),
                           f"{layer}.1.3.weight": (hidden, 4 * hidden)}
    return shapes


def _fill(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return (1 + 0.1 * noise if name.endswith("weight") else 0.1 * noise).half()
    return (noise if name == "latents" else noise / shape[-1] ** 0.5).half()
