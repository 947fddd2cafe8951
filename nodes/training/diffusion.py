"""The diffusion loss: how well the denoiser restores the subject's pictures."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .interfaces import Batch, DenoiserSide, Encode, Needs, Pass, Results, TextSide
from .noise import output_error

ALWAYS = (1, 10**9)


def subject_pass(batch: Batch, text: TextSide) -> Pass:
    """The pass that denoises the subject's pictures, each row with its own prompt.

    Terms that ask for it again, for its attention maps, share this one run."""
    return Pass(Encode(tuple(text.tokenizer(row.prompt) for row in batch.rows["subject"])))


@dataclass(frozen=True)
class DiffusionLoss:
    """L = ‖ε − ε_θ(z_t, t, c(y))‖² (CoRe Eq. 1), mean over pixels and rows; the velocity for v-prediction models.

    background: weight, 0…1, of pixels outside the subject's mask; 1 ignores masks. Rows without a mask count whole.
    """

    weight: float = 1.0
    background: float = 1.0
    window: tuple[int, int] = ALWAYS
    name: str = "diffusion"

    def needs(self, batch: Batch, text: TextSide, rng: torch.Generator) -> Needs:
        """One pass of the denoiser over the rows of the step."""
        return Needs(passes={"prediction": subject_pass(batch, text)})

    def __call__(self, got: Results, batch: Batch, model: DenoiserSide) -> Tensor:
        """Scalar float32."""
        latents = batch.latents["subject"]
        error = output_error(model.sampling, latents, got.passes["prediction"]).square()
        if latents.masks is None or self.background == 1:
            return error.mean()
        weight = self.background + (1 - self.background) * latents.masks
        return ((error * weight).flatten(1).sum(1) / weight.expand_as(error).flatten(1).sum(1)).mean()
