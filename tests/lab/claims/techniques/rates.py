"""Plain Textual Inversion at several learning rates and lengths: which numbers suit the miniature?

The papers' are for Stable Diffusion, whose token rows are as long (0.4) but have 768 or 1024 coordinates, not 128: a
step of AdamW, which moves every coordinate by the rate, there changes a row two to three times as much.

While the miniature knew words for eight colours only, no rate from 5e-4 to 5e-2 and no length up to 1000 steps taught a
colour between two of them. Since it has 48, the paper's own 5e-3 does in 150 steps.
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
        Embedding(f"TI-{rate:g}-{steps}", replace(STAGE_1, rate=rate, steps=2 if quick else steps), None,
                  rescaled=False)
        for rate in RATES for steps in STEPS)
    return Technique((Truth(), ClassWord(), *tried), {method.name: "class-word" for method in tried})
