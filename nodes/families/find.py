"""Which family a model is of."""
from __future__ import annotations

from torch import nn

from .family import Family
from .unet import UNet


def family_of(model) -> Family:
    """The family's view of a ComfyUI MODEL, or of the denoiser that a wrapper is given. Raises ValueError naming the
    model if it is of none."""
    return unet_of(model)


def unet_of(model) -> UNet:
    """As `family_of`, for what acts on the blocks of a U-Net. Raises ValueError naming the model if it is another."""
    denoiser = model if isinstance(model, nn.Module) else model.get_model_object("diffusion_model")
    if not UNet.is_kind_of(denoiser):
        raise ValueError(f"The model {_name(model)} is no U-Net with text cross-attention; use SD1.x, SD2.x or SDXL.")
    unet = UNet(denoiser)
    if not unet.layers:
        raise ValueError(f"The model {_name(model)} has no text cross-attention; use SD1.x, SD2.x or SDXL.")
    return unet


def _name(model) -> str:
    return type(getattr(model, "model", model)).__name__
