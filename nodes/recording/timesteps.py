"""The widget by which a node lets its user choose how much noise a latent gets."""
from __future__ import annotations

import re

from comfy_api.latest import io

from .latent_recorder import TIMESTEPS


def timesteps_input(optional: bool = False):
    """The input `timesteps`."""
    return io.String.Input("timesteps", default="200, 400", optional=optional,
                           tooltip="How much noise the latent gets: timesteps of the noise schedule, 0 (next to none) "
                                   "to 999 (only noise), separated by commas. The model runs once for each.")


def parse_timesteps(text: str) -> list[int]:
    """Its numbers. Raises ValueError if it holds others than 0 to 999, or none."""
    parts = [part.strip() for part in re.split(r"[,\s]+", text) if part.strip()]
    if not parts or not all(part.isdigit() and int(part) < TIMESTEPS for part in parts):
        raise ValueError(f"timesteps is '{text}'; write whole numbers from 0 to {TIMESTEPS - 1}, separated by "
                         "commas: 200, 400.")
    return [int(part) for part in parts]
