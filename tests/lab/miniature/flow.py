"""Flow matching as in Z-Image: straight lines from noise to the picture, classifier-free guidance."""
from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F


def flow_noised(latents: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """x_t of unit-variance latents (B, 16, 16, 16) at noise levels sigma (B,) in 0..1."""
    level = sigma.view(-1, 1, 1, 1)
    return (1 - level) * latents + level * noise


def flow_error(networks: torch.nn.ModuleDict, latents: torch.Tensor, words: torch.Tensor, cells: torch.Tensor
               ) -> torch.Tensor:
    """Sum over rows of the mean squared error of the predicted velocity, noise - latents, at logit-normal noise levels.
    cells: (B, 1, 16, 16), how much each counts."""
    sigma, noise = torch.randn(len(latents), device=latents.device).sigmoid(), torch.randn_like(latents)
    predicted = flow_velocity(networks, flow_noised(latents, noise, sigma), sigma, words)
    return (cells * F.mse_loss(predicted.float(), noise - latents, reduction="none")).mean((1, 2, 3)).sum()


def flow_velocity(networks: torch.nn.ModuleDict, x: torch.Tensor, sigma: torch.Tensor, words: torch.Tensor
                  ) -> torch.Tensor:
    """What the transformer predicts for x (B, 16, 16, 16). ComfyUI's rotation of queries and keys has a backward pass
    only in training."""
    import comfy.model_management as mm

    was_training, mm.in_training = mm.in_training, True
    try:
        return networks["unet"](x, sigma, words, words.shape[1], transformer_options={})
    finally:
        mm.in_training = was_training


def sample_flow(networks: torch.nn.ModuleDict, words: torch.Tensor, x: torch.Tensor, guidance: float, steps: int
                ) -> torch.Tensor:
    """Latents by Euler's method for words (B, L, 128) from noise x."""
    away, _ = networks["text"].condition(networks["text"].tokens([""]))
    away = away.expand(len(x), -1, -1)
    for now, then in itertools.pairwise(torch.linspace(1, 0, steps + 1).tolist()):
        sigma = torch.full((len(x),), now, device=x.device)
        off, on_prompt = (flow_velocity(networks, x, sigma, side).float() for side in (away, words))
        x = x + (then - now) * (off + guidance * (on_prompt - off))
    return x
