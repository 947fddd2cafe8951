"""What a loss term asks for, and what it gets.

A *loss term* says what it needs (encodings, denoiser passes, attention maps), gets it, and returns a scalar.
Requests are values: two terms that ask for the same thing get the same result.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..families.layers import AttentionLayer
from ..families.noise import NoiseLevels
from ..text.encode import Encoded
from ..text.tokens import PromptTokenizer, PromptTokens
from ..text.vectors import Vectors
from .batch import Batch, Stream, Subject


@dataclass(frozen=True)
class Encode:
    """Ask for the text encoding of one prompt shared by all rows, or of one prompt per row.

    grad: whether the loss needs gradients through this encoding.
    original: encode with frozen, original weights and without trainable parts: a reference.
    layer: which cross-attention layer's vectors words with one for each stand for; None where the request does not say:
        of a pass every layer's, of an encoding alone one that is drawn for the step.
    """

    tokens: tuple[PromptTokens, ...]
    grad: bool = True
    original: bool = False
    layer: int | None = None


@dataclass(frozen=True)
class Pass:
    """Ask for a run of the denoiser on a stream's noisy latents with an encoding.

    until: last cross-attention layer whose maps are needed; the pass stops there and predicts nothing.
    original: run without trainable parts.
    """

    context: Encode
    latents: Stream = "subject"
    grad: bool = True
    until: AttentionLayer | None = None
    original: bool = False


@dataclass(frozen=True)
class Maps:
    """Ask for the softmax cross-attention of a pass, mean over heads, float32.

    layers: layers to record.
    keep: "mean" gives (rows, T) per layer, the mean over pixels; "pixels" gives (rows, pixels, n) per layer.
    positions: for "pixels": the n token positions kept, per row or one tuple for all rows.
    keys: take the keys of this encoding with the pass's queries, in place of the pass's own.
    beside: not of the pass itself but of the run that a part makes beside it for the reference pictures (ViCo).
    """

    of: Pass
    layers: tuple[AttentionLayer, ...]
    keep: Literal["mean", "pixels"] = "mean"
    positions: tuple[tuple[int, ...], ...] | None = None
    keys: Encode | None = None
    beside: bool = False


@dataclass(frozen=True)
class Needs:
    """What a loss term asks for, under names of its own choosing."""

    encodes: Mapping[str, Encode] = field(default_factory=dict)
    passes: Mapping[str, Pass] = field(default_factory=dict)
    maps: Mapping[str, Maps] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """What a loss term gets, under the names it asked with.

    encodes: name → Encoded (rows as in the request).
    passes: name → predicted clean latents (B, C, h, w), or None where the pass stopped early.
    maps: name → tuple of one tensor per layer, in the order of the request.
    """

    encodes: Mapping[str, Encoded]
    passes: Mapping[str, Tensor | None]
    maps: Mapping[str, tuple[Tensor, ...]]

    def predicted(self, name: str) -> Tensor:
        """Clean latents (B, C, h, w) of a pass that went to its end."""
        latents = self.passes[name]
        assert latents is not None, f"{name} stopped early"
        return latents


class LossTerm(Protocol):
    """One term of the training objective."""

    @property
    def name(self) -> str:
        """Shown on the chart."""

    @property
    def weight(self) -> float:
        """Multiplies the loss."""

    @property
    def window(self) -> tuple[int, int]:
        """First and last step (from 1) at which it acts."""

    @property
    def stream(self) -> Stream:
        """Over whose rows the loss is a mean; without any the term does not act."""

    def needs(self, batch: Batch, text: TextSide, rng: torch.Generator) -> Needs:
        """What this step needs. `rng` starts the same for every term of a step and for its micro-batches."""

    def __call__(self, got: Results, batch: Batch, model: DenoiserSide) -> Tensor:
        """The unweighted float32 scalar, mean over the stream's rows in the batch."""


@runtime_checkable
class ChecksSubjects(Protocol):
    """A loss term of which what it draws at random can be looked at beforehand."""

    def check(self, subjects: Sequence[Subject], text: TextSide) -> None:
        """Raises ValueError with one sentence if a later step could fail."""


@runtime_checkable
class BringsWords(Protocol):
    """A loss term in whose prompts words stand that no concept has and no part trains."""

    @property
    def words(self) -> Vectors:
        """Placeholder → what stands for it."""


@dataclass(frozen=True)
class TextSide:
    """What a loss term may know of the text encoders and of the U-Net's layers when it states its needs."""

    tokenizer: PromptTokenizer
    layers: tuple[AttentionLayer, ...]


@dataclass(frozen=True)
class DenoiserSide:
    """What a loss term may know of the denoiser when it computes.

    noise: its noise levels.
    """

    noise: NoiseLevels
