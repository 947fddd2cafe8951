"""What one step sees: pictures, which of them with which prompt, and their noised latents."""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Mapping, Protocol, Sequence

from torch import Tensor

from ..families.noise import NoiseLevels
from ..text.concept import Concept

Stream = Literal["subject", "prior", "reference"]


@dataclass(frozen=True)
class Picture:
    """One picture of a subject, ready to be encoded.

    variants: (V, H, W, 3) float32 in 0…1, at least one; augmented versions of the same picture.
    masks: (V, H, W) float32 in 0…1, 1 on the subject, or None.
    caption: prompt that describes the picture and holds the placeholder, or "" for the recipe's prompts.
    name: file name or "picture 3", for messages.
    """

    variants: Tensor
    masks: Tensor | None = None
    caption: str = ""
    name: str = ""
    NOT_IN_KEY = ("name",)


@dataclass(frozen=True)
class Subject:
    """A concept and its pictures; one link of the SUBJECT chain."""

    concept: Concept
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Row:
    """What one row of a step sees: picture `picture`, variant `variant` of subject `subject`, with `prompt`."""

    subject: int
    picture: int
    variant: int
    prompt: str


@dataclass(frozen=True)
class Noised:
    """Latents of one stream at their timesteps.

    clean, noise, noisy: (B, C, h, w) in the model's latent space; noisy is what the denoiser gets.
    sigma: (B,) noise level, as ComfyUI's model_sampling counts it.
    masks: (B, 1, h, w) in 0…1 or None.
    """

    clean: Tensor
    noise: Tensor
    noisy: Tensor
    sigma: Tensor
    masks: Tensor | None = None

    def slice(self, rows: slice) -> Noised:
        """The rows of a micro-batch."""
        cut = [None if t is None else t[rows] for t in (self.clean, self.noise, self.noisy, self.sigma, self.masks)]
        return Noised(*cut)


@dataclass(frozen=True)
class Batch:
    """One step, or a micro-batch of it: for each stream its rows and latents; "subject" is always there."""

    step: int
    subjects: tuple[Subject, ...]
    rows: Mapping[Stream, tuple[Row, ...]]
    latents: Mapping[Stream, Noised]

    @property
    def size(self) -> int:
        """Rows B of the subject stream."""
        return len(self.rows["subject"])

    def concept(self, row: Row) -> Concept:
        """The concept that a row shows."""
        return self.subjects[row.subject].concept

    def slice(self, rows: slice) -> Batch:
        """The same rows of every stream."""
        return replace(self, rows={name: value[rows] for name, value in self.rows.items()},
                       latents={name: value.slice(rows) for name, value in self.latents.items()})


class Recipe(Protocol):
    """Which picture with which prompt a step sees."""

    def rows(self, subjects: Sequence[Subject], step: int, size: int, seed: int) -> Mapping[Stream, tuple[Row, ...]]:
        """`size` rows of the subject stream for step `step` (from 1), and rows of other streams if wanted."""


class Latents(Protocol):
    """Where a step's noised latents come from: a Dataset of pictures, or noise alone."""

    def noised(self, rows: Sequence[Row], levels: NoiseLevels, seed: int, step: int, stream: Stream, device: Any) -> Noised:
        """Latents for the rows."""
