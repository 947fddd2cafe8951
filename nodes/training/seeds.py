"""Randomness that needs no state: every draw is a function of the run's seed, the step and a purpose."""
from __future__ import annotations

import hashlib

import torch


def generator(seed: int, *purpose: int | str) -> torch.Generator:
    """A CPU generator of its own for (seed, purpose…). Equal arguments give equal draws on every machine, so a resumed
    run continues exactly; ComfyUI's global generator is neither read nor moved."""
    text = ":".join(map(str, (seed, *purpose)))
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1)
