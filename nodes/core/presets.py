"""CoRe's two losses with the weights that belong to their formulas."""
from __future__ import annotations

from dataclasses import dataclass

from ..training.diffusion import ALWAYS
from .terms import ContextAttentionLoss, ContextEmbeddingLoss, Formula

# What a loss by the paper's equation must be multiplied by to have the gradient of the authors' formula.
# PLACEHOLDER: measured by tests/bench/core_weights.py
EMBEDDING_FACTOR = 1.0
ATTENTION_FACTOR = 1.0


@dataclass(frozen=True)
class Weighting:
    """Which formulas, and λ_emb and λ_attn for them (CoRe Eq. 5)."""

    formula: Formula
    embedding: float
    attention: float


RELEASED = Weighting("released", 1.5e-4, 0.05)
PRESETS = {
    "as released": RELEASED,
    "Eqs. 3–4": Weighting("paper", RELEASED.embedding * EMBEDDING_FACTOR, RELEASED.attention * ATTENTION_FACTOR),
}


def core_terms(templates: tuple[str, ...], weighting: Weighting, estimate: bool = False,
               window: tuple[int, int] = ALWAYS) -> tuple[ContextEmbeddingLoss | ContextAttentionLoss, ...]:
    """CoRe's two loss terms on these templates; one whose weight is 0 is left out.

    Raises ValueError if there is no template.
    """
    if not templates:
        raise ValueError("prompt_set is empty, but CoRe compares prompts; choose a subject on the Prompt Set node or write "
                         "prompts of your own there.")
    terms = (ContextEmbeddingLoss(templates, weighting.embedding, weighting.formula, window),
             ContextAttentionLoss(templates, weighting.attention, weighting.formula, estimate, window))
    return tuple(term for term in terms if term.weight)
