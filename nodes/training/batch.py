"""What one step sees: pictures, which of them with which prompt, and their noised latents."""
from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from torch import Tensor

from ..families.noise import NoiseLevels
from ..text.concept import Concept
from .zoom import Framing

Stream = Literal["subject", "prior", "reference"]
Numbers = slice | list[int]  # of rows


class Picture(Protocol):
    """One picture of a subject, whose variants are made when they are asked for."""

    @property
    def name(self) -> str:
        """File name or "picture 3", for messages."""

    @property
    def caption(self) -> str:
        """Prompt that describes the picture and holds the placeholder, or "" for the recipe's prompts."""

    @property
    def count(self) -> int:
        """Number V of variants, at least one."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every variant in pixels."""

    @property
    def masked(self) -> bool:
        """Whether there are masks."""

    def framing(self, variant: int) -> Framing:
        """How a variant stands in its square, and what its prompt says of that."""

    def photograph(self, longest_side: int) -> Tensor:
        """The picture as it came, (H, W, 3) in 0…1, smaller if it is longer."""

    def made(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Variants, augmented versions of the same picture, as many at a time as memory should hold: (n, H, W, 3)
        float32 in 0…1, and masks (n, H, W) in 0…1, 1 on the subject, or None."""


@dataclass(frozen=True)
class Prior:
    """Pictures of a subject's class, which the model shall draw as before (DreamBooth's prior preservation).

    pictures: one variant each, of the size of the subject's; the caption is the prompt. rows: how many of them a step
    sees. weight: λ of their loss.
    """

    pictures: tuple[Picture, ...]
    rows: int = 1
    weight: float = 1.0


@dataclass(frozen=True)
class Subject:
    """A concept and its pictures, and perhaps some of its class; one link of the chain of subjects."""

    concept: Concept
    pictures: tuple[Picture, ...]
    prior: Prior | None = None


def with_concepts(subjects: Sequence[Subject], concepts: Sequence[Concept]) -> tuple[Subject, ...]:
    """The subjects with the same pictures, each with that of the concepts which has its placeholder."""
    known = {concept.placeholder: concept for concept in concepts}
    return tuple(replace(each, concept=known[each.concept.placeholder]) for each in subjects)


@dataclass(frozen=True)
class Row:
    """What one row of a step sees: picture `picture`, variant `variant` of subject `subject`, with `prompt`. In the
    stream "prior" it is a picture of the subject's prior. inside: only what its mask covers counts in the diffusion
    loss."""

    subject: int
    picture: int
    variant: int
    prompt: str
    inside: bool = False


@dataclass(frozen=True)
class Noised:
    """Latents of one stream at their timesteps.

    clean, noise, noisy: (B, C, h, w) in the model's latent space; noisy is what the denoiser gets.
    sigma: (B,) noise level, as ComfyUI's model_sampling counts it.
    masks: (B, 1, h, w) in 0…1 or None. valid: (B, 1, h, w), 1 where there is a picture, or None where all is one.
    """

    clean: Tensor
    noise: Tensor
    noisy: Tensor
    sigma: Tensor
    masks: Tensor | None = None
    valid: Tensor | None = None

    def slice(self, rows: Numbers) -> Noised:
        """The rows of a micro-batch."""
        all_of = (self.clean, self.noise, self.noisy, self.sigma, self.masks, self.valid)
        return Noised(*(None if t is None else t[rows] for t in all_of))  # ty: ignore[invalid-argument-type]


@dataclass(frozen=True)
class Batch:
    """One step, or a micro-batch of it: for each stream its rows and latents; "subject" is always there, in a
    micro-batch perhaps without rows.

    shares: how many of the step's rows of a stream these are, 0…1.
    """

    step: int
    subjects: tuple[Subject, ...]
    rows: Mapping[Stream, tuple[Row, ...]]
    latents: Mapping[Stream, Noised]
    shares: Mapping[Stream, float] = field(default_factory=lambda: dict.fromkeys(get_args(Stream), 1.0))

    @property
    def size(self) -> int:
        """Rows B of the subject stream."""
        return len(self.rows["subject"])

    def concept(self, row: Row) -> Concept:
        """The concept that a row shows."""
        return self.subjects[row.subject].concept

    def micro_batches(self, rows: int) -> Iterator[Batch]:
        """Pieces with `rows` rows of the subject, the last one with what is left.

        Each other stream is cut into as many pieces: where it has as many rows as the subject, row by row beside it;
        the last pieces of a shorter one may be empty.
        """
        for number in range(math.ceil(self.size / rows)):
            yield self._piece({stream: _cut(len(own), number, rows, self.size) for stream, own in self.rows.items()})

    def apart(self, kinds: Mapping[Stream, Sequence[Hashable]]) -> Iterator[Batch]:
        """Pieces whose rows are all of one kind in each stream, in the order in which kinds come up.

        kinds: of every row. A stream with as many rows as the subject is cut row by row beside it.
        """
        beside = [stream for stream, rows in self.rows.items() if len(rows) == self.size]
        of_subject = _groups(list(zip(*(kinds[stream] for stream in beside))))
        groups = {stream: of_subject if stream in beside else _groups(kinds[stream]) for stream in self.rows}
        if max(map(len, groups.values())) == 1:
            yield self
            return
        for of_piece in zip_longest(*groups.values(), fillvalue=[]):
            yield self._piece(dict(zip(groups, of_piece)))

    def _piece(self, cuts: Mapping[Stream, Numbers]) -> Batch:
        rows = {stream: _taken(self.rows[stream], cut) for stream, cut in cuts.items()}
        return replace(self, rows=rows,
                       latents={stream: latents.slice(cuts[stream]) for stream, latents in self.latents.items()},
                       shares={stream: self.shares[stream] * len(rows[stream]) / max(1, len(self.rows[stream]))
                               for stream in cuts})


def _groups(kinds: Sequence[Hashable]) -> list[list[int]]:
    """Numbers of the rows of each kind."""
    return [[i for i, kind in enumerate(kinds) if kind == each] for each in dict.fromkeys(kinds)]


def _taken(rows: tuple[Row, ...], numbers: Numbers) -> tuple[Row, ...]:
    return rows[numbers] if isinstance(numbers, slice) else tuple(rows[i] for i in numbers)


def _cut(count: int, number: int, rows: int, size: int) -> slice:
    """Piece `number` of a stream of `count` rows, as `rows` of `size` are one of the subject's."""
    each = math.ceil(count * rows / size)
    return slice(number * each, (number + 1) * each)


class Recipe(Protocol):
    """Which picture with which prompt a step sees."""

    def rows(self, subjects: Sequence[Subject], step: int, size: int, seed: int) -> Mapping[Stream, tuple[Row, ...]]:
        """`size` rows of the subject stream for step `step` (from 1), and rows of other streams if wanted."""


@runtime_checkable
class PreparesPictures(Protocol):
    """A recipe that shows pictures in more ways than the subjects have them."""

    def prepared(self, subjects: Sequence[Subject]) -> tuple[Subject, ...]:
        """The subjects with pictures whose variants its rows name."""


class Latents(Protocol):
    """Where a step's noised latents come from: a Dataset of pictures, or noise alone."""

    def noised(self, rows: Sequence[Row], levels: NoiseLevels, seed: int, step: int, stream: Stream, device: Any
               ) -> Noised:
        """Latents for the rows."""
