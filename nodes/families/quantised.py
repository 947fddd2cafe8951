"""Weights that a file holds in a byte or less a number."""
from __future__ import annotations

import comfy.ops
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn


def has_scales(weight: Tensor) -> bool:
    """Whether a weight is one of ComfyUI's quantised ones, whose layers cast by themselves."""
    return isinstance(weight, QuantizedTensor)


def is_written_out_for_gradients(weight: Tensor) -> bool:
    """Whether it is such a one whose layer, in older ComfyUIs, passes gradients on only if told to cast it in full."""
    return has_scales(weight) and not hasattr(comfy.ops, "QuantLinearFunc")


def is_quantised(weight: Tensor) -> bool:
    """The same, or fp8 numbers as they are."""
    return has_scales(weight) or weight.element_size() == 1


def lets_gradients_through(weight: Tensor) -> bool:
    """Whether the layer that holds a weight is one of ComfyUI's, which pass a gradient on to their input; layers of
    other loaders, such as GGUF's, hold bytes that only they understand."""
    return has_scales(weight) or type(weight) is nn.Parameter and weight.is_floating_point()
