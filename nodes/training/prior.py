"""Prior preservation: pictures of the class keep the model from forgetting it (DreamBooth, Ruiz et al. 2023)."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .batch import Batch, Stream, Subject
from .diffusion import ALWAYS, denoising_pass
from .interfaces import DenoiserSide, Needs, Results, TextSide

PRIOR: Stream = "prior"


@dataclass(frozen=True)
class PriorPreservation:
    """λ ‖ε − ε_θ(z_t, t, c(class prompt))‖², the second half of DreamBooth's Eq. 2, mean over pixels and rows, of what
    the network gives: the velocity for v-prediction models. λ is that of each row's subject."""

    weight: float = 1.0
    window: tuple[int, int] = ALWAYS
    name: str = "prior preservation"
    stream: ClassVar[Stream] = PRIOR

    def check(self, subjects: Sequence[Subject], text: TextSide) -> None:
        """Raises ValueError if no subject has prior pictures."""
        if not any(subject.prior for subject in subjects):
            raise ValueError("Prior preservation is asked for, but no subject has prior pictures; connect Prior "
                             "Pictures between Subject and Train.")

    def needs(self, batch: Batch, text: TextSide, rng: torch.Generator) -> Needs:
        """One pass of the denoiser over the step's pictures of the class."""
        return Needs(passes={"prediction": denoising_pass(batch, text, PRIOR)})

    def __call__(self, got: Results, batch: Batch, model: DenoiserSide) -> Tensor:
        """Scalar float32."""
        latents = batch.latents[PRIOR]
        error = model.noise.output_error(latents.clean, latents.sigma, got.predicted("prediction")).square()
        priors = [batch.subjects[row.subject].prior for row in batch.rows[PRIOR]]
        weights = [prior.weight for prior in priors if prior]
        return (error.flatten(1).mean(1) * error.new_tensor(weights)).mean()


def prior_terms(subjects: Sequence[Subject]) -> tuple[PriorPreservation, ...]:
    """The loss of the subjects' prior pictures, if there are any."""
    return (PriorPreservation(),) if any(subject.prior for subject in subjects) else ()
