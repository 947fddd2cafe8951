"""Which family a model is of."""
from __future__ import annotations

from torch import nn

from .family import Family
from .lumina import Lumina
from .unet import UNet

FAMILIES = (UNet, Lumina)


def family_of(model) -> Family:
    """The family's view of a ComfyUI MODEL, or of the denoiser that a wrapper is given. Raises ValueError naming the
    model if it is of none."""
    denoiser = _denoiser(model)
    for family in FAMILIES:
        if family.is_kind_of(denoiser):
            found = family(denoiser)  # ty: ignore[invalid-argument-type]
            if found.layers:
                return found
    known = ", ".join(family.models for family in FAMILIES)
    raise ValueError(f"The model {_name(model)} is of no family that this pack knows, or has no attention to the text; "
                     f"use {known}.")


def unet_of(model) -> UNet:
    """As `family_of`, for what acts on the blocks of a U-Net. Raises ValueError naming the model if it is another."""
    denoiser = _denoiser(model)
    if not UNet.is_kind_of(denoiser):
        raise ValueError(f"The model {_name(model)} is no U-Net with text cross-attention; use SD1.x, SD2.x or SDXL.")
    unet = UNet(denoiser)  # ty: ignore[invalid-argument-type]
    if not unet.layers:
        raise ValueError(f"The model {_name(model)} has no text cross-attention; use SD1.x, SD2.x or SDXL.")
    return unet


def _denoiser(model) -> nn.Module:
    return model if isinstance(model, nn.Module) else model.get_model_object("diffusion_model")


def _name(model) -> str:
    return type(getattr(model, "model", model)).__name__
