"""Where a denoiser attends to the text."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Place = tuple[tuple[str, int], int]


@dataclass(frozen=True)
class AttentionLayer:
    """One attention of pictures to the text.

    block: ComfyUI's block key; in a U-Net ("input" | "middle" | "output", index), in a sequence of text and picture
        ("double", index).
    depth: index of the transformer block inside its block.
    order: place in execution order, 0 for the first that runs.
    channels: width of queries and keys, all heads together.
    heads: number of heads.
    stride: latent pixels per attention pixel along one side (1, 2, 4 or 8).
    """

    block: tuple[str, int]
    depth: int
    order: int
    channels: int
    heads: int
    stride: int

    @property
    def place(self) -> Place:
        """Where the layer is; see `place_in`."""
        return self.block, self.depth

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the layer's maps for a latent of this height and width."""
        height, width = size
        stride = self.stride
        while stride > 1:
            height, width, stride = -(-height // 2), -(-width // 2), stride // 2
        return height, width


def place_in(options: Mapping[str, Any]) -> Place:
    """Place of the transformer block that an attention patch runs in, given the patch's options."""
    return tuple(options["block"]), options["block_index"]
