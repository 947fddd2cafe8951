"""The forward process."""
from __future__ import annotations

from torch import Tensor

from ..families.noise import NoiseLevels
from .batch import Noised


def add_noise(levels: NoiseLevels, clean: Tensor, noise: Tensor, numbers: Tensor,
              masks: Tensor | None = None, valid: Tensor | None = None) -> Noised:
    """Noises `clean` (B, C, h, w) at the levels with these numbers (B,)."""
    sigma = levels.sigma(numbers.to(clean.device))
    return Noised(clean, noise, levels.add(clean, noise, sigma), sigma, masks, valid)
