"""Noise, loss and sampler: Stable Diffusion's own schedule, classifier-free guidance."""
from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .network import predicts_velocity

TIMESTEPS = 1000


def alphas_bar(on: torch.device | str = "cpu") -> torch.Tensor:
    """(1000,) cumulative signal share of SD1.x: betas linear in their square roots from 0.00085 to 0.012."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, TIMESTEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float().to(on)


def add_noise(latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """x_t of unit-variance latents (B, 16, 16, 16) at timesteps t (B,)."""
    share = alphas_bar(latents.device)[t].view(-1, 1, 1, 1)
    return share.sqrt() * latents + (1 - share).sqrt() * noise


def velocity(latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """v of v-prediction: sqrt(share) noise - sqrt(1 - share) latents."""
    share = alphas_bar(latents.device)[t].view(-1, 1, 1, 1)
    return share.sqrt() * noise - (1 - share).sqrt() * latents


Condition = tuple[torch.Tensor, "torch.Tensor | None"]   # words (B, 77 or more, d) and SDXL's vector


def condition_of(networks: torch.nn.ModuleDict, tokens: torch.Tensor, references: torch.Tensor | None) -> Condition:
    """Words, followed by the visual tokens (B, 8, 128) of reference pictures when there are any; and SDXL's vector."""
    words, vector = networks["text"].condition(tokens)
    if references is not None:
        words = torch.cat([words, networks["picture"](references)], 1)
    return words, vector


def diffusion_loss(networks: torch.nn.ModuleDict, latents: torch.Tensor, tokens: torch.Tensor,
                   references: torch.Tensor | None) -> torch.Tensor:
    """Sum over rows of the mean squared error of the predicted noise (SD1.x) or velocity (SDXL twin), weighted by
    `loss_weight`."""
    t = torch.randint(TIMESTEPS, (len(latents),), device=latents.device)
    noise = torch.randn_like(latents)
    words, vector = condition_of(networks, tokens, references)
    words = mix_ends(networks["text"], words, tokens)
    predicted = networks["unet"](add_noise(latents, noise, t), t.float(), context=words, y=vector)
    target = velocity(latents, noise, t) if predicts_velocity(networks) else noise
    error = F.mse_loss(predicted.float(), target, reduction="none").mean((1, 2, 3))
    return (loss_weight(t, predicts_velocity(networks)) * error).sum()


EXCHANGED, EMPTIED = 0.5, 0.25   # rows whose end and padding outputs are another prompt's, and the empty prompt's


def mix_ends(text: torch.nn.Module, words: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Words (B, 77 + visual, d), of which many rows have the end and padding outputs of another prompt.

    What causal text encoders give for these tokens holds the whole prompt; a U-Net that is to read the words must find it
    misleading.
    """
    own = words[:, :tokens.shape[1]]
    empty = text.condition(text.tokens([""]))[0].expand_as(own)
    draw = torch.rand(len(tokens), 1, 1, device=tokens.device)
    other = torch.where(draw < EXCHANGED, own.roll(1, 0), torch.where(draw < EXCHANGED + EMPTIED, empty, own))
    return torch.cat([with_ends(own, other, is_end(text, tokens)), words[:, tokens.shape[1]:]], 1)


def with_ends(words: torch.Tensor, other: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """``words`` (B, 77, d) with the outputs of ``other`` where ``ends`` (B, 77)."""
    return torch.where(ends[..., None], other, words)


def is_end(text: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """(B, 77): the first end token and all that follow it."""
    first = (tokens == text.end_place).int().argmax(1, keepdim=True)
    return torch.arange(tokens.shape[1], device=tokens.device) >= first


def loss_weight(t: torch.Tensor, of_velocity: bool) -> torch.Tensor:
    """(B,) weights at timesteps t (B,), with which every noise level counts alike (as in EDM2, Karras et al. 2024).

    The error of the noise grows as the root of the SNR (0.04 √SNR from t = 30 to 980, measured after 240 000 pictures):
    unweighted, the nearly clean steps, which the prompt hardly changes, would drown those that decide what is shown.
    """
    share = alphas_bar(t.device)[t]
    ratio = share / (1 - share)
    return ratio.sqrt() / (ratio + 1) if of_velocity else ratio.rsqrt()


@torch.no_grad()
def sample(networks: torch.nn.ModuleDict, prompts: Sequence[str], *, seed: int, guidance: float = 5.0, steps: int = 25,
           references: torch.Tensor | None = None) -> torch.Tensor:
    """Unit-variance latents (B, 16, 16, 16) for the prompts, by deterministic DDIM; noise depends on ``seed`` alone."""
    towards = condition_of(networks, networks["text"].tokens(prompts), references)
    return sample_condition(networks, towards, seed=seed, guidance=guidance, steps=steps, references=references)


@torch.no_grad()
def sample_condition(networks: torch.nn.ModuleDict, towards: Condition, *, seed: int, guidance: float = 5.0,
                     steps: int = 25, references: torch.Tensor | None = None) -> torch.Tensor:
    """As ``sample``, for what the U-Net receives in place of prompts."""
    rows = len(towards[0])
    away = condition_of(networks, networks["text"].tokens([""] * rows), references)
    words = torch.cat([away[0], towards[0]])
    vector = None if away[1] is None or towards[1] is None else torch.cat([away[1], towards[1]])
    on = words.device
    share, times = alphas_bar(on), torch.linspace(TIMESTEPS - 1, 0, steps + 1).round().long().tolist()
    x = torch.randn(rows, 16, 16, 16, generator=torch.Generator().manual_seed(seed)).to(on)
    for now, then in itertools.pairwise(times):
        t = torch.full((2 * rows,), float(now), device=on)
        off, on_prompt = networks["unet"](torch.cat([x, x]), t, context=words, y=vector).float().chunk(2)
        predicted = off + guidance * (on_prompt - off)
        if predicts_velocity(networks):
            clean = share[now].sqrt() * x - (1 - share[now]).sqrt() * predicted
            predicted = (x - share[now].sqrt() * clean) / (1 - share[now]).sqrt()
        clean = (x - (1 - share[now]).sqrt() * predicted) / share[now].sqrt()
        x = share[then].sqrt() * clean + (1 - share[then]).sqrt() * predicted
    return x
