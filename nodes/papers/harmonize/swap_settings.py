"""How keys and values are swapped, and where."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ...attention.masks import MaskMethod
from ...attention.words import Words
from ...families.layers import AttentionLayer

Halves = Literal["both", "conditional"]
BOTH: Halves = "both"
MASK_SIDE = 16  # pixels of the longer side that the coarsest maps for a mask must have


def _fine_decoder(layer: AttentionLayer, all_layers: tuple[AttentionLayer, ...]) -> bool:
    coarsest = max(each.stride for each in all_layers if each.block[0] == "output")
    return layer.block[0] == "output" and layer.stride < coarsest


SWAP_LAYERS: Mapping[str, Callable[[AttentionLayer, tuple[AttentionLayer, ...]], bool]] = {
    "all": lambda layer, _: True,
    "decoder": lambda layer, _: layer.block[0] == "output",
    "fine decoder": _fine_decoder,
    "encoder": lambda layer, _: layer.block[0] == "input",
}


@dataclass(frozen=True)
class AttentionMask:
    """A subject mask from the picture's own cross-attention.

    words: whose attention it is. method, threshold: how it is found on the mean map, as for `foreground`. coarse: from
    the coarsest layers with at least MASK_SIDE pixels on the longer side; else from all.
    newest: from the maps of the newest step; else from their mean over all steps so far.
    """

    words: Words
    method: MaskMethod
    threshold: float
    coarse: bool
    newest: bool

    def layers(self, layers: tuple[AttentionLayer, ...], size: tuple[int, int]) -> tuple[AttentionLayer, ...]:
        """Those of the U-Net's layers whose maps are taken, for a latent of this height and width."""
        if not self.coarse:
            return layers
        large = [layer.stride for layer in layers if max(layer.grid(size)) >= MASK_SIDE]
        stride = max(large) if large else min(layer.stride for layer in layers)
        return tuple(layer for layer in layers if layer.stride == stride)


@dataclass(frozen=True)
class SwapSettings:
    """How keys and values are swapped.

    layers: a name of SWAP_LAYERS. window: start and end as shares of the schedule; the swap acts in steps that begin
    inside. strength: 0 … 1, how much of the swapped attention is taken inside the mask. halves: BOTH, or "conditional"
    to leave the negative side alone. mask: where; a tensor (1 or images, H, W) in 0..1, or None for everywhere.
    """

    layers: str
    window: tuple[float, float]
    strength: float
    halves: Halves
    mask: AttentionMask | Tensor | None
