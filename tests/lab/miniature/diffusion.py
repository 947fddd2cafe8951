"""Noise, loss and sampler: Stable Diffusion's own schedule, classifier-free guidance."""
from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .data import grouped
from .flow import flow_error, sample_flow
from .flow_network import is_flow
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


FOREGROUND = 1.0  # by how much a cell that a thing covers counts more than one of the background


def diffusion_loss(networks: torch.nn.ModuleDict, latents: torch.Tensor, tokens: torch.Tensor,
                   references: torch.Tensor | None, foreground: torch.Tensor) -> torch.Tensor:
    """Sum over rows of the mean squared error of the predicted noise (SD1.x) or velocity (SDXL's by `loss_weight`, as
    noise; Z-Image's of the flow). foreground: (B, 1, 16, 16) in 0..1."""
    cells = 1 + FOREGROUND * foreground
    cells = cells / cells.mean((1, 2, 3), keepdim=True)
    words, vector = mix_ends(networks["text"], condition_of(networks, tokens, references), tokens)
    if is_flow(networks):
        return flow_error(networks, latents, words, cells)
    t = torch.randint(TIMESTEPS, (len(latents),), device=latents.device)
    noise = torch.randn_like(latents)
    predicted = networks["unet"](add_noise(latents, noise, t), t.float(), context=words, y=vector)
    target = velocity(latents, noise, t) if predicts_velocity(networks) else noise
    error = (cells * F.mse_loss(predicted.float(), target, reduction="none")).mean((1, 2, 3))
    return (loss_weight(t, predicts_velocity(networks)) * error).sum()


EXCHANGED, EMPTIED = 0.5, 0.25   # rows whose end and padding outputs are another prompt's, and the empty prompt's


def mix_ends(text: torch.nn.Module, condition: Condition, tokens: torch.Tensor) -> Condition:
    """The condition, of which many rows have the end and padding outputs, and the pooled vector, of another prompt.

    What causal text encoders give for these tokens holds the whole prompt; a denoiser that is to read the words must
    find it misleading.
    """
    words, vector = condition
    own, visual = words[:, :tokens.shape[1]], words[:, tokens.shape[1]:]
    nothing = text.tokens([""])
    empty, empty_vector = text.condition(nothing)
    draw = torch.rand(len(tokens), 1, device=tokens.device)
    neighbours = with_ends(text, own, tokens, own.roll(1, 0), tokens.roll(1, 0))
    emptied = with_ends(text, own, tokens, empty.expand(len(tokens), -1, -1), nothing.expand(len(tokens), -1))
    mixed = torch.cat([_one_of(draw[..., None], neighbours, emptied, own), visual], 1)
    return mixed, None if vector is None else _one_of(draw, vector.roll(1, 0), empty_vector, vector)


def _one_of(draw: torch.Tensor, neighbours: torch.Tensor, empty: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Of every row one of three, by its number in 0..1."""
    return torch.where(draw < EXCHANGED, neighbours, torch.where(draw < EXCHANGED + EMPTIED, empty, own))


def with_ends(text: torch.nn.Module, own: torch.Tensor, tokens: torch.Tensor, other: torch.Tensor, others: torch.Tensor
              ) -> torch.Tensor:
    """Outputs ``own`` (B, L, d) for ``tokens`` (B, L), from the first end token on those that ``other`` (B, L', d) has
    for the ends of ``others`` (B, L')."""
    rows = text.end_rows(tokens, others)[..., None].expand(-1, -1, own.shape[-1])
    return torch.where(text.ends(tokens)[..., None], other.gather(1, rows), own)


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
    """Unit-variance latents (B, 16, 16, 16) for the prompts by a deterministic sampler; noise depends on ``seed``
    alone."""
    conditions = [condition_of(networks, networks["text"].tokens([prompt]), None if references is None else
                               references[row:row + 1]) for row, prompt in enumerate(prompts)]
    return sample_conditions(networks, conditions, seed=seed, guidance=guidance, steps=steps, references=references)


@torch.no_grad()
def sample_conditions(networks: torch.nn.ModuleDict, towards: Sequence[Condition], *, seed: int, guidance: float = 5.0,
                      steps: int = 25, references: torch.Tensor | None = None) -> torch.Tensor:
    """As ``sample``, for what the denoiser receives in place of prompts, a row each."""
    on = towards[0][0].device
    noise = torch.randn(len(towards), 16, 16, 16, generator=torch.Generator().manual_seed(seed)).to(on)
    drawn = torch.empty_like(noise)
    for rows in grouped(words.shape[1] for words, _ in towards):
        words, vectors = zip(*(towards[row] for row in rows))
        condition = torch.cat(words), None if vectors[0] is None else torch.cat(vectors)
        if is_flow(networks):
            drawn[rows] = sample_flow(networks, condition[0], noise[rows], guidance, steps)
        else:
            shown = None if references is None else references[rows]
            drawn[rows] = _ddim(networks, condition, noise[rows], guidance, steps, shown)
    return drawn


def _ddim(networks: torch.nn.ModuleDict, towards: Condition, x: torch.Tensor, guidance: float, steps: int,
          references: torch.Tensor | None) -> torch.Tensor:
    rows, on = len(x), x.device
    away = condition_of(networks, networks["text"].tokens([""] * rows), references)
    words = torch.cat([away[0], towards[0]])
    vector = None if away[1] is None or towards[1] is None else torch.cat([away[1], towards[1]])
    share, times = alphas_bar(on), torch.linspace(TIMESTEPS - 1, 0, steps + 1).round().long().tolist()
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
