"""DETEX's attention loss as a term of training."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...attention.masks import grid_with, on_grid
from ...families.layers import AttentionLayer
from ...text.tokens import PromptTokens
from ...training.batch import Batch, Row, Stream, Subject
from ...training.diffusion import ALWAYS, denoising_pass
from ...training.interfaces import DenoiserSide, Maps, Needs, Results, TextSide
from .loss import attribute_error
from .words import BACKGROUND, POSE, attribute_word

STRIDE = 2  # of the layers that are looked at: 32 × 32 at 512 pixels


@dataclass(frozen=True)
class AttributeAttentionLoss:
    """L_CA (Eq. 4): a picture's pose word shall look at its subject, its background word at the rest.

    Rows whose background is blank have no background word; rows whose picture has no mask do not count. normalised,
    squared: as for `attribute_error`.
    """

    weight: float = 0.01
    normalised: bool = True
    squared: bool = False
    window: tuple[int, int] = ALWAYS
    name: str = "attribute attention"
    stream: ClassVar[Stream] = "subject"
    uses_masks: ClassVar[bool] = True

    def check(self, subjects: Sequence[Subject], text: TextSide) -> None:
        """Raises ValueError if a subject has no mask at all."""
        for subject in subjects:
            if not any(picture.masked for picture in subject.pictures):
                raise ValueError(f"Attribute Attention Loss needs masks, and no picture of "
                                 f"{subject.concept.placeholder} has one; make them with Subject Mask, paint them on "
                                 "Subject, or leave this loss out.")

    def needs(self, batch: Batch, text: TextSide, rng: torch.Generator) -> Needs:
        """Maps of the words in the pass that the diffusion loss runs."""
        run = denoising_pass(batch, text)
        pairs = zip(run.context.tokens, batch.rows["subject"], strict=True)
        positions = tuple(_positions(tokens, batch, row) for tokens, row in pairs)
        return Needs(maps={"attributes": Maps(run, layers_looked_at(text.layers), "pixels", positions)})

    def __call__(self, got: Results, batch: Batch, model: DenoiserSide) -> Tensor:
        """Scalar float32, mean over the rows with a mask."""
        maps = torch.stack(got.maps["attributes"]).mean(0)
        rows, latents = batch.rows["subject"], batch.latents["subject"]
        counts = maps.new_tensor([_picture(batch, row).masked for row in rows])
        if latents.masks is None or not counts.any():
            return maps.sum() * 0
        masks = on_grid(latents.masks[:, 0], grid_with(latents.masks.shape[-2:], maps.shape[1])).flatten(1).to(maps)
        has_background = maps.new_tensor([_background_word(batch, row) in row.prompt for row in rows])
        error = self._error(maps[..., 0], masks) + has_background * self._error(maps[..., 1], 1 - masks)
        return (counts * error).sum() / counts.sum()

    def _error(self, maps: Tensor, masks: Tensor) -> Tensor:
        return attribute_error(maps, masks, self.normalised, self.squared)


def layers_looked_at(layers: Sequence[AttentionLayer]) -> tuple[AttentionLayer, ...]:
    """The five of a quarter of the latent's pixels in SD1.x; all, where a model has none of that size."""
    return tuple(layer for layer in layers if layer.stride == STRIDE) or tuple(layers)


def _positions(tokens: PromptTokens, batch: Batch, row: Row) -> tuple[int, int]:
    """Of the pose word and the background word; twice the first where there is no background word."""
    pose = tokens.layout.span(attribute_word(_placeholder(batch, row), POSE, row.picture + 1))
    if not pose:
        raise ValueError("Attribute Attention Loss looks at words that only prompts of Train DETEX hold; connect its "
                         "recipe to recipe on Train.")
    background = tokens.layout.span(_background_word(batch, row))
    return pose[0], (background or pose)[0]


def _background_word(batch: Batch, row: Row) -> str:
    return attribute_word(_placeholder(batch, row), BACKGROUND, row.picture + 1)


def _placeholder(batch: Batch, row: Row) -> str:
    return batch.concept(row).placeholder


def _picture(batch: Batch, row: Row):
    return batch.subjects[row.subject].pictures[row.picture]
