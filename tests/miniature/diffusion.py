"""Noise, loss and sampler: Stable Diffusion's own schedule, eps-prediction, classifier-free guidance."""
from __future__ import annotations

from typing import Sequence

import torch
import torch.nn.functional as F

TIMESTEPS = 1000


def alphas_bar(on: torch.device | str = "cpu") -> torch.Tensor:
    """(1000,) cumulative signal share of SD1.x: betas linear in their square roots from 0.00085 to 0.012."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, TIMESTEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float().to(on)


def add_noise(latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """x_t of unit-variance latents (B, 16, 16, 16) at timesteps t (B,)."""
    share = alphas_bar(latents.device)[t].view(-1, 1, 1, 1)
    return share.sqrt() * latents + (1 - share).sqrt() * noise


def context_of(networks: torch.nn.ModuleDict, tokens: torch.Tensor, references: torch.Tensor | None) -> torch.Tensor:
    """Words (B, 77, 128), followed by the visual tokens (B, 8, 128) of reference pictures when there are any."""
    words = networks["text"](tokens)
    if references is None:
        return words
    return torch.cat([words, networks["picture"](references)], 1)


def diffusion_loss(networks: torch.nn.ModuleDict, latents: torch.Tensor, tokens: torch.Tensor,
                   references: torch.Tensor | None) -> torch.Tensor:
    """Sum over rows of the mean squared error of the predicted noise."""
    t = torch.randint(TIMESTEPS, (len(latents),), device=latents.device)
    noise = torch.randn_like(latents)
    context = context_of(networks, tokens, references)
    predicted = networks["unet"](add_noise(latents, noise, t), t.float(), context=context)
    return F.mse_loss(predicted.float(), noise) * len(latents)


@torch.no_grad()
def sample(networks: torch.nn.ModuleDict, prompts: Sequence[str], *, seed: int, guidance: float = 5.0, steps: int = 25,
           references: torch.Tensor | None = None) -> torch.Tensor:
    """Unit-variance latents (B, 16, 16, 16) for the prompts, by deterministic DDIM; noise depends on ``seed`` alone."""
    on = networks["text"].rows.device
    words = networks["text"].tokens(prompts)
    empty = networks["text"].tokens([""] * len(prompts))
    conditions = [context_of(networks, empty, references), context_of(networks, words, references)]
    share, times = alphas_bar(on), torch.linspace(TIMESTEPS - 1, 0, steps + 1).round().long().tolist()
    x = torch.randn(len(prompts), 16, 16, 16, generator=torch.Generator().manual_seed(seed)).to(on)
    for now, then in zip(times[:-1], times[1:]):
        t = torch.full((2 * len(prompts),), float(now), device=on)
        off, towards = networks["unet"](torch.cat([x, x]), t, context=torch.cat(conditions)).float().chunk(2)
        noise = off + guidance * (towards - off)
        clean = (x - (1 - share[now]).sqrt() * noise) / share[now].sqrt()
        x = share[then].sqrt() * clean + (1 - share[then]).sqrt() * noise
    return x
