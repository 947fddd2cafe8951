"""The session's denoiser: one differentiable call of it, and the CLIP that goes with it."""
from __future__ import annotations

import torch
from torch import Tensor

from ..attention.by_layer import read_by_layer
from ..families.conditioning import model_inputs
from ..text.encode import Encoded, encode
from ..text.layered import LAYERS
from ..text.tokens import PromptTokenizer
from .parts.part import RUNNING, RunningPass
from .session import Session


def denoise(session: Session, noisy: Tensor, sigma: Tensor, context: Encoded, running: RunningPass,
            by_layer: Tensor | None = None) -> Tensor:
    """One differentiable call of the denoiser: predicted clean latents (B, C, h, w) float32.

    noisy: (B, C, h, w). sigma: (B,). context: B rows. SDXL's size conditioning is that of the latents, uncropped.
    running: what parts that wrap the U-Net may know of the call. by_layer: (B, T, L·C), what each layer of a U-Net
    reads in place of the context.
    """
    model = session.model.model
    inputs = model_inputs(model, context.conditioning(), noisy, session.device)
    if by_layer is not None:
        read_by_layer(session.model)
        inputs[LAYERS] = by_layer
    options = {**session.transformer_options(sigma), RUNNING: running}
    return model.apply_model(noisy, sigma, transformer_options=options, **inputs)


def check_same_family(session: Session) -> None:
    """Raises ValueError if the CLIP's encodings do not fit the model's cross-attention, or its prompts' tokens."""
    with torch.no_grad():
        encoded = encode(session.clip, [PromptTokenizer(session.clip, {})("a photo")], [{}])
    takes = session.family.text_width
    if encoded.cond.shape[-1] != takes:
        raise ValueError(f"The CLIP makes encodings of width {encoded.cond.shape[-1]} but the model "
                         f"{type(session.model.model).__name__} takes {takes}; use the CLIP of the same checkpoint.")
    if encoded.cond.shape[1] != encoded.tokens[0].layout.length:
        raise ValueError(f"The CLIP makes {encoded.cond.shape[1]} tokens of a prompt that has "
                         f"{encoded.tokens[0].layout.length}, as CLIP NegPip does, so a word could not be told from "
                         "its neighbours; train with the CLIP and the MODEL from before that node.")
