"""What ComfyUI has to be told so that a gradient goes through a denoiser."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import comfy.model_management as mm
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor

OVERRIDE = "optimized_attention_override"  # in transformer_options: what computes attention in ComfyUI's place


@contextlib.contextmanager
def in_training() -> Iterator[None]:
    """ComfyUI looks at `in_training` where it would compute in a way that has no backward pass."""
    was_training = mm.in_training
    mm.in_training = True  # ty: ignore[invalid-assignment]  a constant to whoever reads ComfyUI's code alone
    try:
        yield
    finally:
        mm.in_training = was_training


Told = Callable[[Tensor, Tensor, Mapping[str, Any]], None]
_told: ContextVar[tuple[Told, ...]] = ContextVar("personalize_told_of_attention", default=())


@contextlib.contextmanager
def watched_attention(told: Told) -> Iterator[None]:
    """While the context is open `told` gets queries and keys, (rows, heads, n, d), and the options of every attention
    that `differentiable_attention` computes."""
    token = _told.set((*_told.get(), told))
    try:
        yield
    finally:
        _told.reset(token)


def differentiable_attention(_, query: Tensor, key: Tensor, *args, **kwargs) -> Tensor:
    """An OVERRIDE: sage, flash and the chunked CPU attention have no backward pass."""
    for told in _told.get():
        told(query, key, kwargs.get("transformer_options") or {})
    return attention_pytorch(query, key, *args, **kwargs)
