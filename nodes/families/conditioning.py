"""ComfyUI's conditioning of prompts as what a denoiser is run with."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy import sampler_helpers, samplers
from torch import Tensor


def model_inputs(model, conditioning: Sequence[Sequence[Any]], noisy: Tensor, device: torch.device) -> dict[str, Any]:
    """What `apply_model` takes beside latents and noise levels, made by the model's own `extra_conds` as a sampler
    does.

    model: ComfyUI's BaseModel. conditioning: [[cond, options], …] as nodes hand it on, one entry for all rows or one
    for each. noisy: (B, C, h, w). Raises ValueError if the entries cannot run together.
    """
    prepared = samplers.encode_model_conds(model.extra_conds, sampler_helpers.convert_cond(conditioning), noisy, device,
                                           "positive")
    rows = len(noisy) // len(prepared)
    first, *others = ({name: cond.process_cond(batch_size=rows, area=None)
                       for name, cond in each["model_conds"].items()}
                      for each in prepared)
    if not all(samplers.cond_equal_size(first, other) for other in others):
        raise ValueError(f"The model {type(model).__name__} cannot run prompts of different length at once; set "
                         "micro_batch or batch_size to 1.")
    inputs = samplers.cond_cat([first, *others])
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
