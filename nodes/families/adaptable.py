"""Which modules of a denoiser an adapter may change."""
from __future__ import annotations

from torch import nn


def adaptable_modules(denoiser: nn.Module, endings: tuple[str, ...]) -> dict[str, nn.Module]:
    """Modules with a matrix or kernel that take ComfyUI's weight functions, by their name in the MODEL.

    endings: of the modules' names; ("",) for all.
    """
    return {f"diffusion_model.{name}": module for name, module in denoiser.named_modules()
            if hasattr(module, "weight_function") and module.weight is not None and module.weight.ndim > 1
            and name.endswith(endings)}
