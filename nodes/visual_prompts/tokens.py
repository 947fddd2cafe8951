"""The visual tokens that travel on wires: what an encoder saw in some pictures."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

IP_ADAPTER, BLIP_DIFFUSION, ELITE = "IP-Adapter", "BLIP-Diffusion", "ELITE"
WORD_LIKE = (BLIP_DIFFUSION, ELITE)  # their tokens take the place of words in a prompt
Combine = Literal["average", "concatenate", "one per image"]
AVERAGE, CONCATENATE, EACH = get_args(Combine)


@dataclass(frozen=True)
class VisualTokens:
    """Pictures as sequences of vectors.

    vectors: (B, M, d) float32 on the CPU; B pictures, M tokens each, of width d.
    source: who made them, for messages and checks: "IP-Adapter", "BLIP-Diffusion", "ELITE".
    negative: (B or 1, M, d) for the unconditional rows, or None where those get no tokens.
    """

    vectors: Tensor
    source: str
    negative: Tensor | None = None

    def __post_init__(self) -> None:
        """Raises ValueError if the vectors are no numbers."""
        if not self.vectors.isfinite().all():
            raise ValueError(
                f"The visual tokens of {self.source} are not numbers: the model that saw the picture is damaged "
                "or overflows in half precision; load its file again, or another one."
            )


def combined(vectors: Tensor, how: Combine) -> Tensor:
    """Tokens (B, M, d) of several pictures of one subject: their average (1, M, d), all of them one after the other
    (1, B · M, d), or as they are, one picture for each image of a batch."""
    if how == AVERAGE:
        return vectors.mean(0, keepdim=True)
    return vectors.flatten(0, 1)[None] if how == CONCATENATE else vectors
