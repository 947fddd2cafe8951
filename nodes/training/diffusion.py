"""The diffusion loss: how well the denoiser restores the subject's pictures."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..families.noise import NoiseLevels
from .batch import Batch, Stream
from .interfaces import DenoiserSide, Encode, Needs, Pass, Results, TextSide

ALWAYS = (1, 10**9)
CONSTANT, DEBIASED = "constant", "debiased"
WEIGHTINGS = (CONSTANT, "min-SNR", DEBIASED)
MIN_SNR_GAMMA = 5.0


def step_window(first_step: int, last_step: int) -> tuple[int, int]:
    """First and last step in which a loss acts; last_step 0: to the end."""
    return first_step, last_step or ALWAYS[1]


def denoising_pass(batch: Batch, text: TextSide, stream: Stream = "subject") -> Pass:
    """The pass that denoises a stream's pictures, each row with its own prompt.

    Terms that ask for it again, for its attention maps, share this one run."""
    return Pass(Encode(tuple(text.tokenizer(row.prompt) for row in batch.rows[stream])), stream)


@dataclass(frozen=True)
class DiffusionLoss:
    """L = ‖ε − ε_θ(z_t, t, c(y))‖² (CoRe Eq. 1), mean over pixels and rows; the velocity for v-prediction models.

    background: weight, 0…1, of pixels outside the subject's mask; 1 ignores masks; 0 for rows of which only the inside
        counts. Rows without a mask count whole.
        What is grey around a picture counts nothing.
    noise_levels: one of WEIGHTINGS, how rows count by their noise (`noise_level_weights`).
    """

    weight: float = 1.0
    background: float = 1.0
    window: tuple[int, int] = ALWAYS
    noise_levels: str = CONSTANT
    name: str = "diffusion"
    stream: ClassVar[Stream] = "subject"

    @property
    def uses_masks(self) -> bool:
        """Whether the pictures' masks change it."""
        return self.background != 1

    def needs(self, batch: Batch, text: TextSide, rng: torch.Generator) -> Needs:
        """One pass of the denoiser over the rows of the step."""
        return Needs(passes={"prediction": denoising_pass(batch, text)})

    def __call__(self, got: Results, batch: Batch, model: DenoiserSide) -> Tensor:
        """Scalar float32."""
        latents = batch.latents["subject"]
        error = model.noise.output_error(latents.clean, latents.sigma, got.predicted("prediction")).square()
        weight = latents.valid
        background = error.new_tensor([0.0 if row.inside else self.background for row in batch.rows["subject"]])
        if latents.masks is not None and (background != 1).any():
            background = background.view(-1, 1, 1, 1)
            of_masks = background + (1 - background) * latents.masks
            weight = of_masks if weight is None else of_masks * weight
        if weight is None:
            rows = error.flatten(1).mean(1)
        else:
            counted = weight.expand_as(error).flatten(1).sum(1)
            rows = (error * weight).flatten(1).sum(1) / counted.clamp_min(torch.finfo(counted.dtype).tiny)
        return (rows * noise_level_weights(model.noise, latents.sigma, self.noise_levels)).mean()


def noise_level_weights(levels: NoiseLevels, sigma: Tensor, how: str) -> Tensor:
    """(B,) weights of the squared error of the network's output at noise levels σ (B,).

    "constant": 1. "min-SNR": the error of the clean latent counts min(SNR, 5) times (Hang et al. 2023). "debiased": it
    counts √SNR times (Yu et al. 2023), which is 1 / √SNR for the error of the noise.
    """
    if how == CONSTANT:
        return torch.ones_like(sigma)
    ratio = levels.noise_to_signal(sigma)  # SNR^-½
    counts = ratio.reciprocal() if how == DEBIASED else ratio.square().reciprocal().clamp(max=MIN_SNR_GAMMA)
    return levels.output_slope(sigma).square() * counts
