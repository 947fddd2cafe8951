"""Which picture with which prompt a step sees."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Sequence

import torch

from ..text.placeholders import filled
from .batch import Row, Stream, Subject
from .seeds import generator

PHOTO = ("a photo of a {}",)


@dataclass(frozen=True)
class TemplateRecipe:
    """Every picture once in each round, in a new order; subjects take turns.

    templates: prompts with one {}; one is drawn for each row. The default is CoRe's single prompt.
    captions: whether a picture's own caption takes the place of a template.
    """

    templates: tuple[str, ...] = PHOTO
    captions: bool = True

    def rows(self, subjects: Sequence[Subject], step: int, size: int, seed: int) -> Mapping[Stream, tuple[Row, ...]]:
        """`size` rows of the subject stream for step `step` (from 1)."""
        first = (step - 1) * size
        return {"subject": tuple(self._row(subjects, first + i, seed) for i in range(size))}

    def _row(self, subjects: Sequence[Subject], index: int, seed: int) -> Row:
        which, turn = index % len(subjects), index // len(subjects)
        subject = subjects[which]
        lap, place = divmod(turn, len(subject.pictures))
        order = torch.randperm(len(subject.pictures), generator=generator(seed, "order", which, lap))
        number = int(order[place])
        picture, draw = subject.pictures[number], generator(seed, "row", index)
        variant = int(torch.randint(len(picture.variants), (), generator=draw))
        template = self.templates[int(torch.randint(len(self.templates), (), generator=draw))]
        prompt = picture.caption if self.captions and picture.caption else filled(template, subject.concept.placeholder)
        return Row(which, number, variant, prompt)
