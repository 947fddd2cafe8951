"""The forward process and the prediction target, for every prediction type that ComfyUI's model_sampling knows."""
from __future__ import annotations

import torch
from torch import Tensor

from .interfaces import Noised


def add_noise(sampling, clean: Tensor, noise: Tensor, timesteps: Tensor, masks: Tensor | None = None) -> Noised:
    """Noises `clean` (B, C, h, w) at integer `timesteps` (B,), 0 … number of the model's timesteps − 1."""
    sigma = sampling.sigma(timesteps.to(clean.device)).float().reshape(-1)
    # noise_scaling may write into the noise it is given
    noisy = sampling.noise_scaling(sigma.view(-1, 1, 1, 1), noise.clone(), clean)
    return Noised(clean, noise, noisy, sigma, masks)


def timestep_count(sampling) -> int:
    """Number of discrete timesteps of a model, 1000 for SD1.x, SD2.x and SDXL."""
    return len(sampling.sigmas)


def output_error(sampling, latents: Noised, predicted: Tensor) -> Tensor:
    """Error of the network's own output (noise for eps-, velocity for v-prediction), (B, C, h, w) float32.

    With `output_slope` b that is (x̂ − x) / b(σ): ε̂ − ε for eps-prediction (Eq. 1), v̂ − v for v-prediction, with any
    noise schedule.
    """
    return (predicted.float() - latents.clean) / output_slope(sampling, latents.sigma).view(-1, 1, 1, 1)


def output_slope(sampling, sigma: Tensor) -> Tensor:
    """b (B,) at noise levels σ (B,): `calculate_denoised` is affine in the network's output, x̂ = a·x + b(σ)·output."""
    one = torch.ones(len(sigma), 1, 1, 1, device=sigma.device)
    slope = (sampling.calculate_denoised(sigma, one, torch.zeros_like(one))
             - sampling.calculate_denoised(sigma, torch.zeros_like(one), torch.zeros_like(one)))
    return slope.flatten()
