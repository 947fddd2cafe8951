"""Gradient checkpointing of a U-Net: blocks are computed again in the backward pass and their activations not kept."""
from __future__ import annotations

import contextlib
import functools
from typing import Iterator

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock


@contextlib.contextmanager
def gradient_checkpointing(unet: nn.Module, except_for: nn.Module | None = None) -> Iterator[None]:
    """Every residual and attention block of `unet` is recomputed in backward while the context is open.

    except_for: the block in which a pass stops early; what it has computed is all that is needed of it.
    """
    blocks = [m for m in unet.modules() if isinstance(m, (ResBlock, SpatialTransformer)) and m is not except_for]
    for block in blocks:
        block.forward = functools.partial(_recomputed, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _recomputed(forward, *args):
    """ComfyUI passes one dict of options to all blocks and changes it on the way; every computation gets a copy of the
    values that this block saw, else patches that look at the block's name would act on the wrong one."""
    seen = [dict(a) if isinstance(a, dict) else a for a in args]

    def run(*values):
        return forward(*[dict(v) if isinstance(v, dict) else v for v in values])

    if not torch.is_grad_enabled():
        return run(*seen)
    return checkpoint(run, *seen, use_reentrant=False, preserve_rng_state=False)
