"""Small random ELITE mappers in the layout of the published files: 132 tensors each for the topology of SD1.x."""
from __future__ import annotations

from collections.abc import Mapping

import torch

INNER = 28  # 1024 in the published files

# Names in diffusers with "_" for "." → ComfyUI's blocks, written out for SD1.x.
PLACES = {
    "down_blocks_0_attentions_0": ("input", 1), "down_blocks_0_attentions_1": ("input", 2),
    "down_blocks_1_attentions_0": ("input", 4), "down_blocks_1_attentions_1": ("input", 5),
    "down_blocks_2_attentions_0": ("input", 7), "down_blocks_2_attentions_1": ("input", 8),
    "mid_block_attentions_0": ("middle", 0),
    "up_blocks_1_attentions_0": ("output", 3), "up_blocks_1_attentions_1": ("output", 4),
    "up_blocks_1_attentions_2": ("output", 5), "up_blocks_2_attentions_0": ("output", 6),
    "up_blocks_2_attentions_1": ("output", 7), "up_blocks_2_attentions_2": ("output", 8),
    "up_blocks_3_attentions_0": ("output", 9), "up_blocks_3_attentions_1": ("output", 10),
    "up_blocks_3_attentions_2": ("output", 11)}


def state_dict(channels: Mapping[tuple[str, int], int], vision_width: int, text_width: int, seed: int = 0
               ) -> dict[str, torch.Tensor]:
    """Weights of a mapper, fp32. channels: of the cross-attention in each of ComfyUI's blocks."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name in (f"mapping_{part}{i}" for i in range(5) for part in ("", "patch_")):
        for number, sizes in (("0", (INNER, vision_width)), ("3", (INNER, INNER)), ("6", (text_width, INNER))):
            weights[f"{name}.{number}.weight"] = _random(sizes, generator)
            weights[f"{name}.{number}.bias"] = _random(sizes[:1], generator)
        for number in ("1", "4"):
            weights[f"{name}.{number}.weight"] = 1 + _random((INNER,), generator)
            weights[f"{name}.{number}.bias"] = _random((INNER,), generator)
    for name, block in PLACES.items():
        for part in ("to_k", "to_v"):
            attention = f"{name}_transformer_blocks_0_attn2"
            weights[f"{attention}_{part}.weight"] = _random((channels[block], text_width), generator)
    return weights


def _random(sizes: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(sizes, generator=generator)
    return 0.1 * noise if len(sizes) == 1 else noise / sizes[1] ** 0.5
