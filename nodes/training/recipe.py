"""Which picture with which prompt a step sees."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
        """`size` rows of the subject stream for step `step` (from 1), and those of the subjects' prior pictures."""
        turns = range((step - 1) * size, step * size)
        rows: dict[Stream, tuple[Row, ...]] = {"subject": tuple(self._row(subjects, turn, seed) for turn in turns)}
        prior = _prior_rows(subjects, step, seed)
        if prior:
            rows["prior"] = prior
        return rows

    def _row(self, subjects: Sequence[Subject], index: int, seed: int) -> Row:
        which, turn = index % len(subjects), index // len(subjects)
        subject = subjects[which]
        number = _picture_in_turn(len(subject.pictures), turn, seed, "order", which)
        picture, draw = subject.pictures[number], generator(seed, "row", index)
        variant = int(torch.randint(picture.count, (), generator=draw))
        template = self.templates[int(torch.randint(len(self.templates), (), generator=draw))]
        prompt = picture.caption if self.captions and picture.caption else filled(template, subject.concept.placeholder)
        return Row(which, number, variant, picture.framing(variant).prompt(prompt))


def _prior_rows(subjects: Sequence[Subject], step: int, seed: int) -> tuple[Row, ...]:
    """For each subject as many of its prior pictures as a step sees, every picture once in each round."""
    rows = []
    for which, subject in enumerate(subjects):
        if subject.prior is None:
            continue
        pictures, each = subject.prior.pictures, subject.prior.rows
        for turn in range((step - 1) * each, step * each):
            number = _picture_in_turn(len(pictures), turn, seed, "prior order", which)
            rows.append(Row(which, number, 0, pictures[number].caption))
    return tuple(rows)


def _picture_in_turn(count: int, turn: int, seed: int, *draw: str | int) -> int:
    """The picture that is shown in the given turn (from 0), where each round shows all `count` in a new order."""
    lap, place = divmod(turn, count)
    order = torch.randperm(count, generator=generator(seed, *draw, lap))
    return int(order[place])
