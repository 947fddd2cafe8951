"""Plain Textual Inversion at several learning rates and lengths: which numbers suit the miniature?

The papers' are for Stable Diffusion, whose token rows are as long (0.4) but have 768 or 1024 coordinates, not 128: a step
of AdamW, which moves every coordinate by the rate, there changes a row two to three times as much.

Two subjects, 12 prompts, 150 steps of 4 rows: at 5e-4, 1.5e-3, 5e-3, 1.5e-2 and 5e-2 the class stays in 0.79, 0.62, 0.54, 0.33
and 0.29 of the pictures (0.96 with the class word), the subject's colours come in 0.15, 0.20, 0.05, 0.05 and 0.00.
"""
from __future__ import annotations

from dataclasses import replace

from ..bounds import ClassWord, Truth
from ..technique import Method, Technique
from .core import STAGE_1, Embedding

RATES = (5e-4, 1.5e-3, 5e-3)
STEPS = (150, 300, 600)


def technique(quick: bool) -> Technique:
    """Truth, class word, and TI for each rate and number of steps."""
    tried: tuple[Method, ...] = tuple(
        Embedding(f"TI-{rate:g}-{steps}", replace(STAGE_1, rate=rate, steps=2 if quick else steps), None, rescaled=False)
        for rate in RATES for steps in STEPS)
    return Technique((Truth(), ClassWord(), *tried), {method.name: "class-word" for method in tried})
