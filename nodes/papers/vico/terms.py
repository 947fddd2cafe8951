"""ViCo's loss terms: what the reference's attention to the subject's word is held to."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...text.tokens import PromptTokens
from ...training.batch import Batch, Stream
from ...training.diffusion import ALWAYS, denoising_pass
from ...training.interfaces import DenoiserSide, Maps, Needs, Results, TextSide
from .blocks import Placement, layers_at
from .maths import alignment, end_of_text_regularisation, object_mask
from .parts import REFERENCE, end_position, reference_masks, subject_positions

Target = Literal["end of text", "object mask", "given mask"]


@dataclass(frozen=True)
class ReferenceAttentionLoss:
    """L_reg (Eq. 6), summed over the layers with image blocks as in the authors' code; or the alignment of Fig. 9.

    target: what the map of the subject's word is drawn to: the map of the end-of-text token (Eq. 6), the word's own
        Otsu mask, or the pictures' masks.
    placement: of the image blocks.
    """

    weight: float = 5e-4
    target: Target = "end of text"
    placement: Placement = "decoder"
    window: tuple[int, int] = ALWAYS
    name: str = "reference attention"
    stream: ClassVar[Stream] = "subject"

    @property
    def uses_masks(self) -> bool:
        """Whether the pictures' masks change it."""
        return self.target == "given mask"

    def needs(self, batch: Batch, text: TextSide, rng: torch.Generator) -> Needs:
        """Maps of the run on the references that the image blocks' part makes beside the subject's pass."""
        if REFERENCE not in batch.rows:
            raise ValueError("End-of-Text Regularisation looks at reference pictures; connect Training References to "
                             "recipe on Train, and Train ViCo to trainable.")
        run = denoising_pass(batch, text)
        columns = [_columns(tokens, placeholder)
                   for tokens, placeholder in zip(run.context.tokens, _placeholders(batch), strict=True)]
        length = max(map(len, columns))
        positions = tuple(c + c[-1:] * (length - len(c)) for c in columns)
        layers = layers_at(text.layers, self.placement)
        return Needs(encodes={"prompts": run.context},
                     maps={"reference": Maps(run, layers, "pixels", positions, beside=True)})

    def __call__(self, got: Results, batch: Batch, model: DenoiserSide) -> Tensor:
        """Scalar float32."""
        counts = [len(_columns(tokens, placeholder)) - 1
                  for tokens, placeholder in zip(got.encodes["prompts"].tokens, _placeholders(batch), strict=True)]
        return torch.stack([self._of_layer(maps, counts, batch) for maps in got.maps["reference"]]).sum()

    def _of_layer(self, maps: Tensor, counts: list[int], batch: Batch) -> Tensor:
        """maps: (B, P, n), in row i those of the word's counts[i] tokens, then that of the end."""
        subject = torch.stack([row[:, :count].sum(-1) for row, count in zip(maps, counts, strict=True)])
        if self.target == "end of text":
            return end_of_text_regularisation(subject, maps[..., -1])
        mask = object_mask(subject, "paper") if self.target == "object mask" else reference_masks(batch, maps.shape[1])
        assert mask is not None  # only the variant "none" has none
        return alignment(subject, mask)


def _placeholders(batch: Batch) -> list[str]:
    return [batch.concept(row).placeholder for row in batch.rows["subject"]]


def _columns(tokens: PromptTokens, placeholder: str) -> tuple[int, ...]:
    """Positions of the subject's word, then that of the end-of-text token."""
    subject = subject_positions(tokens, placeholder)
    return (*subject, end_position(tokens, subject[0]))
