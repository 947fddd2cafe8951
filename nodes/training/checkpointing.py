"""Gradient checkpointing: blocks are computed again in the backward pass and their activations not kept."""
from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


@contextlib.contextmanager
def gradient_checkpointing(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Every one of the blocks is recomputed in backward while the context is open."""
    for block in blocks:
        block.forward = functools.partial(_recomputed, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _recomputed(forward, *args, **kwargs):
    """ComfyUI passes one dict of options to all blocks and changes it on the way; every computation gets a copy of the
    values that this block saw, else patches that look at the block's name would act on the wrong one."""
    seen = [_copy_of(each) for each in args]
    named = {name: _copy_of(each) for name, each in kwargs.items()}

    def run(*values):
        return forward(*map(_copy_of, values), **{name: _copy_of(each) for name, each in named.items()})

    if not torch.is_grad_enabled():
        return run(*seen)
    return checkpoint(run, *seen, use_reentrant=False, preserve_rng_state=False)


def _copy_of(value):
    return dict(value) if isinstance(value, dict) else value
