"""The forward process and the prediction target, for every prediction type that ComfyUI's model_sampling knows."""
from __future__ import annotations

import torch
from torch import Tensor

from .batch import Noised


def add_noise(sampling, clean: Tensor, noise: Tensor, timesteps: Tensor, masks: Tensor | None = None) -> Noised:
    """Noises `clean` (B, C, h, w) at integer `timesteps` (B,), 0 … number of the model's timesteps − 1."""
    sigma = sampling.sigma(timesteps.to(clean.device)).float().reshape(-1)
    # noise_scaling may write into the noise it is given
    noisy = sampling.noise_scaling(sigma.view(-1, 1, 1, 1), noise.clone(), clean)
    return Noised(clean, noise, noisy, sigma, masks)


def timestep_count(sampling) -> int:
    """Number of discrete timesteps of a model, 1000 for SD1.x, SD2.x and SDXL."""
    return len(sampling.sigmas)


def check_noise_levels(sampling) -> None:
    """Raises ValueError unless timestep 0, 1, … stands for the first, second, … of the model's rising noise levels."""
    kind = " and ".join(each.__name__ for each in type(sampling).__mro__ if each.__module__ == "comfy.model_sampling")
    levels = torch.as_tensor(getattr(sampling, "sigmas", [])).float().reshape(-1)
    if len(levels) > 1 and bool(levels.isfinite().all()) and bool((levels.diff() > 0).all()) and levels[0] > 0:
        found = torch.as_tensor(sampling.sigma(torch.arange(len(levels), device=levels.device))).float().reshape(-1)
        if torch.allclose(found, levels, rtol=1e-3):
            return
    raise ValueError(f"The noise levels of this model ({kind or type(sampling).__name__}) are not those of numbered "
                     "timesteps, from which training draws; take out the node that sets them, such as "
                     "ModelSamplingContinuousEDM, or use a checkpoint of SD1.x, SD2.x or SDXL.")


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
