"""The diffusion loss, row by row: what is compared, inside which mask, and how much each noise level counts."""
from __future__ import annotations

import math

import pytest
import torch

from personalize.nodes.families.noise import noise_levels
from personalize.nodes.training.batch import Batch, Row
from personalize.nodes.training.diffusion import WEIGHTINGS, DiffusionLoss
from personalize.nodes.training.interfaces import DenoiserSide, Results
from personalize.nodes.training.nodes_parts import PersonalizeDiffusionLoss
from personalize.nodes.training.noise import add_noise

TIMESTEPS = (5, 120, 460, 730, 985)
VELOCITY = {"sd15": False, "sd21": True, "sdxl": False, "sdxl_zsnr": True}
COUNTS = {  # of the squared error of noise (Hang et al. 2023; Yu et al. 2023) and velocity, at a signal-to-noise ratio
    "constant": (lambda snr: 1.0, lambda snr: 1.0),
    "min-SNR": (lambda snr: min(snr, 5) / snr, lambda snr: min(snr, 5) / (snr + 1)),
    "debiased": (lambda snr: 1 / math.sqrt(snr), lambda snr: math.sqrt(snr) / (snr + 1)),
}


def by_hand(sampling, latents, predicted, velocity: bool, background: float, how: str) -> float:
    """A row at a time, from the cumulated alphas of the model's noise schedule."""
    rows = []
    for row, t in enumerate(TIMESTEPS):
        kept = 1 / (1 + float(sampling.sigmas[t]) ** 2)
        snr = kept / (1 - kept)
        seen = math.sqrt(kept) * latents.noisy[row]  # ComfyUI's latents grow with the noise: α x̃ = α x + σ' ε
        noise = (seen - math.sqrt(kept) * predicted[row]) / math.sqrt(1 - kept)
        wanted, got = latents.noise[row], noise
        if velocity:
            wanted, got = (math.sqrt(kept) * eps - math.sqrt(1 - kept) * clean
                           for eps, clean in ((wanted, latents.clean[row]), (got, predicted[row])))
        weight = background + (1 - background) * latents.masks[row].expand_as(got)
        error = (weight * (got - wanted) ** 2).sum() / weight.sum()
        rows.append(COUNTS[how][velocity](snr) * float(error))
    return sum(rows) / len(rows)


@pytest.mark.parametrize("how", WEIGHTINGS)
@pytest.mark.parametrize("background", [1.0, 0.25])
@pytest.mark.parametrize("kind", VELOCITY)
def test_noise_levels_count_as_published_for_noise_and_velocity(load_checkpoint, kind, background, how):
    levels = noise_levels(load_checkpoint(kind)[0])
    clean, noise, predicted = torch.randn(3, len(TIMESTEPS), 4, 8, 8, generator=torch.Generator().manual_seed(0))
    masks = (torch.rand(len(TIMESTEPS), 1, 8, 8, generator=torch.Generator().manual_seed(1)) > 0.6).float()
    latents = add_noise(levels, clean, noise, torch.tensor(TIMESTEPS), masks)
    loss = DiffusionLoss(background=background, noise_levels=how)
    rows = {"subject": tuple(Row(0, 0, 0, "a dog") for _ in TIMESTEPS)}
    batch = Batch(1, (), rows, {"subject": latents})
    got = loss(Results({}, {"prediction": predicted}, {}), batch, DenoiserSide(levels))
    assert float(got) == pytest.approx(by_hand(levels.sampling, latents, predicted, VELOCITY[kind], background, how),
                                       rel=2e-3)


def test_the_node_says_how_noise_levels_count():
    usual, chosen = (PersonalizeDiffusionLoss.execute(1.0, 1.0, 1, 0, *how).args[0][0] for how in ((), ("debiased",)))
    assert (usual.noise_levels, chosen.noise_levels) == ("constant", "debiased")
    assert next(
        option for option in PersonalizeDiffusionLoss.define_schema().inputs if option.id == "noise_levels"
    ).options == list(WEIGHTINGS)
