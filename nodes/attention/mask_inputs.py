"""Widgets by which a node lets its user choose how attention becomes a mask."""
from __future__ import annotations

from typing import get_args

from comfy_api.latest import io

from .masks import OTSU, MaskMethod


def mask_method_inputs(remark: str = "") -> list:
    """mask_method and threshold. remark: a sentence about the threshold."""
    return [
        io.Combo.Input("mask_method", options=list(get_args(MaskMethod)), default=OTSU,
                       tooltip="Otsu finds the threshold that parts each picture's map best into foreground and "
                               "background; threshold takes the number below."),
        io.Float.Input("threshold", default=0.3, min=0.0, max=1.0, step=0.01,
                       tooltip="For the method threshold: foreground is what exceeds it, on a scale from 0, the "
                               f"smallest value of the map, to 1, its largest. {remark}".strip())]
