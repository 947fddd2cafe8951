"""The joint training strategy: pictures as they are, and with a blank background in a share of the rows."""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...training.augment import GREY
from ...training.batch import Picture, Row, Stream, Subject
from ...training.recipe import TemplateRecipe
from ...training.seeds import generator
from ...training.zoom import Framing
from .words import attribute_prompt

if TYPE_CHECKING:
    from ...training.idle import Shown


@dataclass(frozen=True)
class WithForeground:
    """A picture with masks, whose variants are those of `whole` and then the same with a blank background.

    blank: 0…1, of the background in all three channels.
    """

    whole: Picture
    blank: float = GREY

    @property
    def name(self) -> str:
        """Of the picture."""
        return self.whole.name

    @property
    def caption(self) -> str:
        """Of the picture."""
        return self.whole.caption

    @property
    def count(self) -> int:
        """Twice as many."""
        return 2 * self.whole.count

    @property
    def size(self) -> tuple[int, int]:
        """Of the picture."""
        return self.whole.size

    @property
    def masked(self) -> bool:
        """Of the picture."""
        return self.whole.masked

    def framing(self, variant: int) -> Framing:
        """A variant stands where it stands with its background."""
        return self.whole.framing(variant % self.whole.count)

    def photograph(self, longest_side: int) -> Tensor:
        """As it came, with its background."""
        return self.whole.photograph(longest_side)

    def made(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Those of the picture, then those without background."""
        yield from self.whole.made()
        for pixels, masks in self.whole.made():
            assert masks is not None  # pictures without one are not given a foreground
            inside = masks[..., None]
            yield pixels * inside + self.blank * (1 - inside), masks


@dataclass(frozen=True)
class AttributeRecipe:
    """Prompts with a word for each picture's pose and background.

    pose_is: the word behind [P]. filtered: γ, share of the rows in which the background is blank and no word stands for
    it; pictures without a mask keep theirs. blank: its grey, 0…1. inside: in these rows only the subject counts in the
    diffusion loss (Eq. 6, which the paper finds worse).
    """

    pose_is: str = "pose"
    filtered: float = 0.5
    blank: float = GREY
    inside: bool = False

    @property
    def uses_masks(self) -> bool:
        """Whether masks say which background is left out."""
        return self.filtered > 0

    def remarks(self, subjects: Sequence[Shown]) -> Iterator[str]:
        """What of the pictures does not act, and what too few of them cannot teach."""
        for subject in subjects:
            word, masked = subject.placeholder, subject.masked
            if subject.captioned:
                yield f"The captions of {word} are not used: the prompts of Train DETEX take their place."
            if subject.pictures == 1:
                yield (f"{word} has one picture, in which nothing tells the subject from its pose and background: the "
                       "word will hold some of both; add pictures in other poses and places.")
            if self.filtered and masked is not None and masked < subject.pictures:
                yield (f"{subject.pictures - masked} of {subject.pictures} pictures of {word} have no mask: their "
                       "background is never left out; make masks with Subject Mask, or set filtered of Train DETEX to "
                       "0.")

    def prepared(self, subjects: Sequence[Subject]) -> tuple[Subject, ...]:
        """The subjects, whose masked pictures also come with a blank background."""
        return tuple(replace(subject, pictures=tuple(map(self._prepared, subject.pictures))) for subject in subjects)

    def _prepared(self, picture: Picture) -> Picture:
        return WithForeground(picture, self.blank) if self.filtered and picture.masked else picture

    def rows(self, subjects: Sequence[Subject], step: int, size: int, seed: int) -> Mapping[Stream, tuple[Row, ...]]:
        """Every picture once in each round, and the rows of prior pictures."""
        streams = TemplateRecipe(captions=False).rows(subjects, step, size, seed)
        first = (step - 1) * size
        own = tuple(self._row(subjects[row.subject], row, seed, first + i)
                    for i, row in enumerate(streams["subject"]))
        return {**streams, "subject": own}

    def _row(self, subject: Subject, row: Row, seed: int, index: int) -> Row:
        picture = subject.pictures[row.picture]
        if not isinstance(picture, WithForeground):
            return replace(row, prompt=self._prompt(subject, row, True))
        draw = torch.rand((), generator=generator(seed, "background filtered", index))
        filtered, whole = bool(draw < self.filtered), picture.whole.count
        return replace(row, variant=row.variant % whole + whole * filtered, inside=filtered and self.inside,
                       prompt=self._prompt(subject, row, not filtered))

    def _prompt(self, subject: Subject, row: Row, background: bool) -> str:
        prompt = attribute_prompt(subject.concept, row.picture + 1, self.pose_is, background)
        return subject.pictures[row.picture].framing(row.variant).prompt(prompt)
