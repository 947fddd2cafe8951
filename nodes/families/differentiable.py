"""What ComfyUI has to be told so that a gradient goes through a denoiser."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator

import comfy.model_management as mm
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor


@contextlib.contextmanager
def in_training() -> Iterator[None]:
    """ComfyUI looks at `in_training` where it would compute in a way that has no backward pass."""
    was_training = mm.in_training
    mm.in_training = True  # ty: ignore[invalid-assignment]  a constant to whoever reads ComfyUI's code alone
    try:
        yield
    finally:
        mm.in_training = was_training


def differentiable_attention(_, *args, **kwargs) -> Tensor:
    """For transformer_options["optimized_attention_override"]: sage, flash and the chunked CPU attention have no
    backward pass."""
    return attention_pytorch(*args, **kwargs)
