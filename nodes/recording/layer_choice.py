"""Widgets by which a node lets its user choose attention layers."""
from __future__ import annotations

import re
from collections.abc import Sequence

from comfy_api.latest import io

from ..families.find import family_of
from ..families.layers import AttentionLayer

ALL = "all"
NUMBERED = "by number"
STRIDES = {f"stride {stride}": stride for stride in (1, 2, 4, 8)}
LAYER_CHOICES = (ALL, *STRIDES, NUMBERED)


def layer_inputs() -> list:
    """The inputs `layers` and `layer_numbers`."""
    return [
        io.Combo.Input("layers", options=list(LAYER_CHOICES),
                       tooltip="Layers to look at, where the picture attends to the text. stride: latent pixels per "
                               "pixel of the layer's maps; for SD1.x at 512 pixels stride 4 has maps of 16 × 16, and "
                               "all of Z-Image's layers have stride 2. by number: those of layer_numbers."),
        io.String.Input("layer_numbers", default="",
                        tooltip="For by number: layers in the order in which the model runs them, from 0 on, such as "
                                "3, 10-15. SD1.x and SD2.x have 16, SDXL has 70, Z-Image 30, Lumina 2 26.")]


def chosen_layers(model, choice: str, numbers: str) -> tuple[AttentionLayer, ...]:
    """Layers of a MODEL in execution order. Raises ValueError if there is no such layer."""
    layers = family_of(model).layers
    if choice == NUMBERED:
        return _numbered(layers, numbers)
    chosen = tuple(layer for layer in layers if choice == ALL or layer.stride == STRIDES[choice])
    if not chosen:
        strides = ", ".join(str(stride) for stride in sorted({layer.stride for layer in layers}))
        raise ValueError(f"layers is '{choice}' but the model's attention to the text has only strides {strides}; "
                         f"choose one of these or '{ALL}'.")
    return chosen


def _numbered(layers: Sequence[AttentionLayer], numbers: str) -> tuple[AttentionLayer, ...]:
    wanted: set[int] = set()
    for part in filter(None, (part.strip() for part in numbers.split(","))):
        match = re.fullmatch(r"(\d+)(?:\s*-\s*(\d+))?", part)
        if not match:
            raise ValueError(f"layer_numbers holds '{part}'; write numbers and ranges such as 3, 10-15.")
        wanted.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    if not wanted:
        raise ValueError("layers is 'by number' but layer_numbers names none; write numbers such as 3, 10-15.")
    if max(wanted) >= len(layers):
        raise ValueError(f"layer_numbers asks for layer {max(wanted)}, but the model has layers 0 to "
                         f"{len(layers) - 1}; write numbers among these.")
    return tuple(layer for layer in layers if layer.order in wanted)
