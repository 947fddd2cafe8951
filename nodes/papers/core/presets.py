"""CoRe's two losses with the weights that belong to their formulas."""
from __future__ import annotations

from dataclasses import dataclass

from ...training.diffusion import ALWAYS
from .terms import ContextAttentionLoss, ContextEmbeddingLoss, Formula

# What a loss by the paper's equation is multiplied by to pull on the vectors as hard as the authors' formula does: the
# median ratio of both gradients' norms. Measured by tests/lab/bench/core_weights.py --checkpoint sd15-size --size 256
# --batch 2 at the second step (at the first all are zero), on random weights of SD1.5's topology with a text encoder of
# the real size: 2.66 (quartiles 2.4 to 2.8) and 15.2 (13 to 22); at 64 px 2.78 and 24.6. Smaller random models give 1.3
# to 1.7 and 11 to 56; the trained miniature, whose text encoder is 128 wide, 21 (12 to 42) and 26 (12 to 39).
EMBEDDING_FACTOR = 2.7
ATTENTION_FACTOR = 15.0


@dataclass(frozen=True)
class Weighting:
    """Which formulas, and λ_emb and λ_attn for them (CoRe Eq. 5)."""

    formula: Formula
    embedding: float
    attention: float

    def times(self, embedding: float, attention: float) -> Weighting:
        """The same formulas with the weights multiplied."""
        return Weighting(self.formula, embedding * self.embedding, attention * self.attention)


RELEASED = Weighting("released", 1.5e-4, 0.05)
FORMULAS = {
    "as released": RELEASED,
    "Eqs. 3–4": Weighting("paper", RELEASED.embedding * EMBEDDING_FACTOR, RELEASED.attention * ATTENTION_FACTOR),
}


def core_terms(templates: tuple[str, ...], weighting: Weighting, estimate: bool = False,
               window: tuple[int, int] = ALWAYS) -> tuple[ContextEmbeddingLoss | ContextAttentionLoss, ...]:
    """CoRe's two loss terms on these templates; one whose weight is 0 is left out.

    Raises ValueError if there is no template.
    """
    if not templates:
        raise ValueError("prompt_set is empty, but CoRe compares prompts; choose a kind on the Prompt Set node or "
                         "write prompts of your own there.")
    terms = (ContextEmbeddingLoss(templates, weighting.embedding, weighting.formula, window),
             ContextAttentionLoss(templates, weighting.attention, weighting.formula, estimate, window))
    return tuple(term for term in terms if term.weight)
