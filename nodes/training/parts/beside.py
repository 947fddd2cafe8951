"""Adapters that act beside a frozen weight W: on what its layer gets, x, and gives, y = W x + b.

Nothing of W's size is made for the change or for its gradient, and weight functions, patches and casts act on W as if
there were no adapter.
"""
from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from comfy.patcher_extension import PatcherInjection
from comfy.weight_adapter.lokr import LokrDiff
from comfy.weight_adapter.lora import LoraDiff
from comfy.weight_adapter.oft import OFTDiff
from torch import Tensor, nn

KEY = "personalize_adapters"
Layer = Any  # a linear or convolution layer of ComfyUI's, which has also bias_function
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def stands_beside(model, layer: nn.Module, adapter: nn.Module) -> bool:
    """Whether `adapter` can act beside the weight of `layer` in `model`, a ModelPatcher.

    LoHa cannot: its change has full rank. OFT turns the whole output, and so cannot where other nodes
    inject something that the turned weight would not reach.
    """
    if type(adapter) not in FORMULAS or isinstance(adapter, OFTDiff) and model.injections:
        return False
    return _is_linear(layer) or isinstance(layer, CONVOLUTIONS) and layer.groups == 1


class Beside:
    """A forward hook by which `adapter` changes the output of a linear or convolution layer while `is_on()`."""

    def __init__(self, adapter: nn.Module, is_on: Callable[[], bool]):
        self.adapter, self.is_on = adapter, is_on

    def __call__(self, layer: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        """The changed output, in its type."""
        return FORMULAS[type(self.adapter)](self.adapter, layer, inputs[0], output) if self.is_on() else output


def put_beside(model, adapters: Sequence[tuple[nn.Module, Beside]]) -> None:
    """Hooks each adapter to its layer for as long as `model` (a ModelPatcher) is loaded.

    They come first: for every other hook they are a part of the layer. Clones share them, and each ejects when it is
    collected: only the one that injected last removes them.
    """
    handles, owner = [], []

    def inject(patcher) -> None:
        remove()
        owner[:] = [weakref.ref(patcher)]
        handles.extend(layer.register_forward_hook(adapter, prepend=True) for layer, adapter in adapters)

    def eject(patcher) -> None:
        if not owner or owner[0]() in (patcher, None):
            remove()

    def remove() -> None:
        while handles:
            handles.pop().remove()

    model.set_injections(KEY, [*(model.get_injections(KEY) or ()), PatcherInjection(inject, eject)])


def _is_linear(layer: nn.Module) -> bool:
    """Also one of ComfyUI's for quantised weights, which is no nn.Linear."""
    return hasattr(layer, "in_features")


def _low_rank(adapter: LoraDiff, layer: Layer, x: Tensor, y: Tensor) -> Tensor:
    """LoRA: y + (α/r) B (A x). In a convolution A has the layer's kernel, and B a kernel of one point."""
    up = (adapter.lora_up.weight * (adapter.alpha / adapter.rank)).to(x.dtype)
    down = adapter.lora_down.weight.to(x.dtype)
    if _is_linear(layer):
        low = F.linear(x, down)
        return torch.addmm(y.flatten(0, -2), low.flatten(0, -2), up.t()).view_as(y)
    low = layer._conv_forward(x, down.unflatten(1, layer.weight.shape[1:]), None)
    return torch.baddbmm(y.flatten(2), up.expand(len(y), -1, -1), low.flatten(2)).view_as(y)


def _kronecker(adapter: LokrDiff, layer: Layer, x: Tensor, y: Tensor) -> Tensor:
    """LoKr: y + (C ⊗ D) x, D applied to each group of channels (in a convolution with the layer's kernel), then C."""
    across, within = adapter.w1.to(x.dtype), adapter.w2.to(x.dtype)
    groups = across.shape[1]
    if _is_linear(layer):
        inside = F.linear(x.unflatten(-1, (groups, -1)), within)
        return y + torch.einsum("og,...gc->...oc", across, inside).flatten(-2)
    inside = layer._conv_forward(x.unflatten(1, (groups, -1)).flatten(0, 1), within, None)
    return y + torch.einsum("og,bgc...->boc...", across, inside.unflatten(0, (-1, groups))).flatten(1, 2)


def _rotation(adapter: OFTDiff, layer: Layer, x: Tensor, y: Tensor) -> Tensor:
    """OFT: R W x + b, which is R y + b − R b. The blocks of R are what the adapter makes of unit matrices as
    weights."""
    count, size = adapter.block_num, adapter.block_size
    blocks = adapter(torch.eye(size, device=y.device).repeat(count, 1)).to(y.dtype).unflatten(0, (count, size))
    if _is_linear(layer):
        turned, bias_shape = _turned(blocks, y), (-1,)
    else:
        turned, bias_shape = _turned(blocks, y.movedim(1, -1)).movedim(-1, 1), (-1,) + (1,) * (y.ndim - 2)
    if layer.bias is None:
        return turned
    bias = layer.bias.to(y)
    for function in layer.bias_function:
        bias = function(bias)
    return turned + (bias - _turned(blocks, bias)).view(bias_shape)


def _turned(blocks: Tensor, channels: Tensor) -> Tensor:
    """Each group of channels (…, k·n) times its block of (k, n, n)."""
    return torch.einsum("kmn,...kn->...km", blocks, channels.unflatten(-1, blocks.shape[:2])).flatten(-2)


FORMULAS: dict[type, Callable[[Any, Layer, Tensor, Tensor], Tensor]] = {
    LoraDiff: _low_rank, LokrDiff: _kronecker, OFTDiff: _rotation}
