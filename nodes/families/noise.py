"""The noise levels that a model was trained with, and what its network gives at them."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_sampling import CONST, IMG_TO_IMG_FLOW
from torch import Tensor


@dataclass(frozen=True, eq=False)
class NoiseLevels:
    """Levels σ numbered from 0, next to no noise, to `count` − 1, the most; this class: of the timesteps of models that
    predict noise or velocity, also with zero terminal signal.

    sampling: ComfyUI's model_sampling object.
    """

    sampling: Any

    @property
    def count(self) -> int:
        """How many there are: 1000 for SD1.x, SD2.x and SDXL."""
        return len(self.sampling.sigmas)

    def draw(self, rows: int, generator: torch.Generator, first: int = 0) -> Tensor:
        """Numbers (rows,), evenly among those from `first` on."""
        return torch.randint(first, self.count, (rows,), generator=generator)

    def sigma(self, numbers: Tensor) -> Tensor:
        """σ (B,) float32 of numbers (B,)."""
        return self.sampling.sigma(numbers).float().reshape(-1)

    def noise_to_signal(self, sigma: Tensor) -> Tensor:
        """(B,): how much larger the noise is than the picture at σ (B,); SNR^-½."""
        return sigma

    def add(self, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """What the network gets of `clean` (B, C, …) with `noise` at σ (B,)."""
        # noise_scaling may write into the noise it is given
        return self.sampling.noise_scaling(_by_row(sigma, clean), noise.clone(), clean)

    def output_error(self, clean: Tensor, sigma: Tensor, predicted: Tensor) -> Tensor:
        """Error of the network's own output, (B, C, …) float32, where it predicted these clean latents.

        With `output_slope` b that is (x̂ − x) / b(σ): ε̂ − ε for eps-prediction (CoRe Eq. 1), v̂ − v for v-prediction
        and flow, with any noise schedule.
        """
        return (predicted.float() - clean) / _by_row(self.output_slope(sigma), clean)

    def output_slope(self, sigma: Tensor) -> Tensor:
        """b (B,) at σ (B,): `calculate_denoised` is affine in the network's output, x̂ = a·x + b(σ)·output."""
        one = torch.ones(len(sigma), 1, 1, 1, device=sigma.device)
        slope = (self.sampling.calculate_denoised(sigma, one, torch.zeros_like(one))
                 - self.sampling.calculate_denoised(sigma, torch.zeros_like(one), torch.zeros_like(one)))
        return slope.flatten()


class FlowLevels(NoiseLevels):
    """Of models that predict the flow from picture to noise, x_t = σ·ε + (1 − σ)·x; the model's shift included, so that
    even numbers fall on the levels as the model was trained."""

    def sigma(self, numbers: Tensor) -> Tensor:
        """See NoiseLevels. ComfyUI's `sigma(…)` counts timesteps in other units in every family."""
        levels = self.sampling.sigmas
        return levels[numbers.to(levels.device)].float().to(numbers.device)

    def noise_to_signal(self, sigma: Tensor) -> Tensor:
        """See NoiseLevels."""
        return sigma / (1 - sigma)


def noise_levels(model) -> NoiseLevels:
    """Of a ComfyUI MODEL. Raises ValueError unless number 0, 1, … stands for the first, second, … of its rising
    levels."""
    sampling = model.get_model_object("model_sampling")
    levels = torch.as_tensor(getattr(sampling, "sigmas", [])).float().reshape(-1)
    if len(levels) > 1 and bool(levels.isfinite().all()) and bool((levels.diff() > 0).all()) and levels[0] > 0:
        found = _levels(sampling)
        numbered = found.sigma(torch.arange(len(levels), device=levels.device))
        if torch.allclose(numbered, levels, rtol=1e-3):
            return found
    kind = " and ".join(each.__name__ for each in type(sampling).__mro__ if each.__module__ == "comfy.model_sampling")
    raise ValueError(f"The noise levels of this model ({kind or type(sampling).__name__}) are not those of numbered "
                     "timesteps, by which they are chosen here; take out the node that sets them, such as "
                     "ModelSamplingContinuousEDM, or use a checkpoint of SD1.x, SD2.x or SDXL.")


def _levels(sampling) -> NoiseLevels:
    is_flow = isinstance(sampling, CONST) and not isinstance(sampling, IMG_TO_IMG_FLOW)
    return FlowLevels(sampling) if is_flow else NoiseLevels(sampling)


def _by_row(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (like.ndim - 1))
