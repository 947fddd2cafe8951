"""The miniature world's image encoder, where ComfyUI's CLIP_VISION is asked for."""
from __future__ import annotations

from typing import Any

import comfy.model_management as mm
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from miniature.contrastive import LatentEncoder

SIDE = 128  # pixels


class MiniatureVision:
    """What learned beside the text encoder which caption a picture has, behind the autoencoder's encoder: with the
    attributes that are read of a CLIP_VISION."""

    image_size, image_mean, image_std = SIDE, [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]

    def __init__(self, vae: Any, encoder: LatentEncoder):
        self.model = _Seeing(vae, encoder)
        self.load_device = mm.get_torch_device()
        self.patcher = ModelPatcher(self.model, self.load_device, mm.text_encoder_offload_device())


class _Seeing(nn.Module):
    def __init__(self, vae: Any, encoder: LatentEncoder):
        super().__init__()
        self.encoder = encoder
        self._vae = [vae]  # no module of this one

    def forward(self, pixel_values: Tensor, intermediate_output: Any = None) -> tuple[None, Tensor, Tensor, None]:
        """As ComfyUI's model: all layers' tokens, of which there is one, and the embedding (B, 128)."""
        latents = self._vae[0].encode(pixel_values.movedim(1, -1)).to(pixel_values)
        embeds = self.encoder(latents)
        return None, embeds[:, None, None], embeds, None
