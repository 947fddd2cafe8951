"""Which modules of a CLIP's text encoders can be trained."""
from __future__ import annotations

from torch import nn

_IN_LAYERS = (".layers.", ".block.")
_PICTURES = ("visual", "vision", "multi_modal")  # towers that encoders of some families have beside the text


def changeable(clip) -> dict[str, nn.Module]:
    """Layers, norms and projections that take ComfyUI's weight functions, by their name in the CLIP's model.

    Not the tables of words and positions, which are looked up.
    """
    return {name: module for name, module in clip.cond_stage_model.named_modules()
            if hasattr(module, "weight_function") and getattr(module, "weight", None) is not None
            and not isinstance(module, nn.Embedding) and not any(part in name for part in _PICTURES)}


def adaptable_layers(clip) -> dict[str, nn.Module]:
    """Linear layers of attention and MLP among them."""
    return {name: module for name, module in changeable(clip).items()
            if module.weight.ndim == 2 and any(part in name for part in _IN_LAYERS)}
