"""The part of the sampling schedule in which a patch acts."""
from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

WHOLE_SCHEDULE = (0.0, 1.0)


@dataclass(frozen=True)
class NoiseRange:
    """Noise levels σ with last ≤ σ ≤ first."""

    first: float
    last: float

    @classmethod
    def of(cls, model, percents: tuple[float, float]) -> NoiseRange:
        """Of a MODEL. percents: start and end as shares of the schedule, 0 the noisiest, as core counts them."""
        sampling = model.get_model_object("model_sampling")
        start, end = percents
        return cls(float(sampling.percent_to_sigma(start)), float(sampling.percent_to_sigma(end)))

    def holds(self, sigma: float) -> bool:
        """Whether it acts at this noise level."""
        return self.last <= sigma <= self.first

    def steps(self, sigmas: Tensor) -> frozenset[int]:
        """Steps of a sampling run that begin inside. sigmas: of the run, (steps + 1,)."""
        return frozenset(step for step, sigma in enumerate(sigmas[:-1].tolist()) if self.holds(sigma))
