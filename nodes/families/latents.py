"""The latents that a model takes, as its latent_format says."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LatentSpace:
    """latent_format: ComfyUI's, of a model."""

    latent_format: Any

    @property
    def channels(self) -> int:
        """Channels C of a latent."""
        return self.latent_format.latent_channels

    @property
    def factor(self) -> int:
        """Pixels of a picture per latent pixel along one side: 8 for SD1.x, SD2.x and SDXL."""
        return self.latent_format.spacial_downscale_ratio

    def empty(self, size: tuple[int, int]) -> Tensor:
        """Zeros (1, C, h, w) for a picture of this height and width in pixels."""
        return torch.zeros(1, self.channels, size[0] // self.factor, size[1] // self.factor)

    def from_vae(self, latents: Tensor) -> Tensor:
        """Latents in the model's space, given as a VAE or LATENT holds them."""
        return self.latent_format.process_in(latents)


def latent_space(model) -> LatentSpace:
    """Of a ComfyUI MODEL."""
    return LatentSpace(model.get_model_object("latent_format"))
