"""Trained weights added to models, as the stock loader adds them from a file."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.sd
from torch import Tensor

from .parts.part import TEXT_WEIGHTS


def with_weights(model: Any, clip: Any, weights: Mapping[str, Tensor]) -> tuple[Any, Any]:
    """Clones of MODEL and CLIP with what a LoRA file's tensors change; the same object where that is nothing."""
    of_text = {name: tensor for name, tensor in weights.items() if name.startswith(TEXT_WEIGHTS)}
    of_model = {name: tensor for name, tensor in weights.items() if name not in of_text}
    if of_model:
        model, _ = comfy.sd.load_lora_for_models(model, None, of_model, 1.0, 0.0)
    if of_text:
        _, clip = comfy.sd.load_lora_for_models(None, clip, of_text, 0.0, 1.0)
    return model, clip
