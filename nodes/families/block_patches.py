"""Other nodes' patches of U-Net blocks made safe for autograd.

Written for sampling, they may change their inputs in place, as FreeU does, which breaks the backward pass. Here they
run without autograd, and once more in the backward pass, where changed tensors are remembered as they were.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import allow_mutation_on_saved_tensors

BLOCK_PATCHES = ("input_block_patch", "input_block_patch_after_skip", "output_block_patch")


def differentiable_patches(patches: Mapping[str, list]) -> dict[str, list]:
    """ComfyUI's transformer_options["patches"] with every patch of whole blocks wrapped; the others as they are."""
    return {name: [_replayed(patch) for patch in listed] if name in BLOCK_PATCHES else list(listed)
            for name, listed in patches.items()}


def _replayed(patch: Callable) -> Callable:
    def call(*given):
        *tensors, options = given
        seen = dict(options)  # it names the block, and has moved on by the time of the backward pass
        result = _Replayed.apply(lambda *arguments: patch(*arguments, seen), *tensors)
        return result if len(tensors) > 1 else result[0]

    return call


class _Replayed(torch.autograd.Function):
    """tensors ↦ patch(tensors) as a tuple, computed anew on copies for the gradient."""

    @staticmethod
    def forward(ctx: Any, patch: Callable, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.patch = patch
        ctx.save_for_backward(*tensors)
        return _as_tuple(patch(*(t.clone() for t in tensors)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad(), allow_mutation_on_saved_tensors():
            inputs = [t.detach().requires_grad_() for t in ctx.saved_tensors]
            outputs = _as_tuple(ctx.patch(*(t.clone() for t in inputs)))
            return None, *torch.autograd.grad(outputs, inputs, gradients, allow_unused=True)


def _as_tuple(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)
