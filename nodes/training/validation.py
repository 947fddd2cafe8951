"""The pictures by which a training is judged: which ones, and how many of them fit into a share of the run's time."""
from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..text.placeholders import filled

MOST_PICTURES = 64  # of a step
MOST_LETTERS = 1000  # of a prompt
NO_BOUND = 1.0
_MARGIN = 0.95  # of a share is planned with, as no picture takes quite as long as the one before


@dataclass(frozen=True)
class Validation:
    """Settings: every prompt is drawn from every noise, at every step from the same ones.

    prompts: {} becomes the word of each subject in turn; one without {} is drawn as it is. noises: for each prompt.
    seed: of the noises, None for the run's. share: of the run's time that pictures may take, 0…1; 1 is no bound.
    size: side in pixels, 0 for that of the first subject's pictures.
    sampler, scheduler, steps, guidance: "" and 0 for what suits the model.
    """

    prompts: tuple[str, ...]
    noises: int = 1
    seed: int | None = None
    share: float = NO_BOUND
    size: int = 0
    sampler: str = ""
    scheduler: str = ""
    steps: int = 0
    guidance: float = 0.0


@dataclass(frozen=True)
class Scene:
    """What one picture of a step shows: a whole prompt, drawn from noise number `noise` (from 0)."""

    prompt: str
    noise: int


def scenes_of(validation: Validation, words: Sequence[str]) -> list[Scene]:
    """All pictures of a step, the most telling first: where some are left out it is the last.

    words: of the subjects.
    """
    prompts = dict.fromkeys(filled(prompt, word) for prompt in validation.prompts for word in words)
    return [Scene(prompt, noise) for noise in range(validation.noises) for prompt in prompts]


@dataclass(frozen=True)
class Pace:
    """every: steps between the steps with pictures, beside the first and the last one. pictures: of each such step."""

    every: int
    pictures: int


@dataclass(frozen=True)
class Asked:
    """What a person wants to see: `pictures` at every `every`-th step and at the last one of `steps`; every: 0 for
    none at all."""

    every: int
    pictures: int
    steps: int

    def is_due(self, step: int, every: int) -> bool:
        """Whether pictures are drawn after this step, if it is every `every`-th one."""
        return bool(every) and (step % every == 0 or step == self.steps)

    def affordable(self, step: int, pictures: int) -> Pace:
        """As often as asked for, less often, or fewer at a time, so that from `step` on, which is counted, at most so
        many pictures are drawn."""
        for factor in _round_numbers():
            pace = Pace(self.every * factor, self.pictures)
            times = self.times(step, pace.every)
            if times * self.pictures <= pictures:
                return pace
            if pace.every >= self.steps:
                return Pace(pace.every, pictures // times)
        raise AssertionError

    def times(self, step: int, every: int) -> int:
        """How often pictures are drawn from `step` on, which is counted."""
        return len(range(math.ceil(step / every) * every, self.steps, every)) + 1


class Spending:
    """The time that a run has spent on training and on pictures, and what it may still spend on pictures.

    share: as of `Validation`. ahead: steps of the optimiser that are still to be done when it begins.
    training, pictures: seconds so far. step: seconds of a step, as long as none is done.
    """

    def __init__(self, share: float, ahead: int):
        self.share, self.training, self.step = share, 0.0, 0.0
        self._ahead, self._steps, self._drawing, self._ready, self._count = ahead, 0, 0.0, 0.0, 0

    def trained(self, seconds: float) -> None:
        """One more step is done; seconds: of training so far."""
        self._steps, self.training = self._steps + 1, seconds

    def drawn(self, seconds: float, pictures: int) -> None:
        """So many pictures were drawn, perhaps none."""
        self._drawing, self._count = self._drawing + seconds, self._count + pictures

    def prepared(self, seconds: float) -> None:
        """Time that pictures took beside drawing."""
        self._ready += seconds

    @property
    def pictures(self) -> float:
        """Seconds so far."""
        return self._drawing + self._ready

    @property
    def each(self) -> float:
        """Seconds of a picture; 0 as long as none is drawn."""
        return self._drawing / self._count if self._count else 0.0

    @property
    def is_unknown(self) -> bool:
        """Whether one picture has to be drawn to know what they take."""
        return not self._count and 0 < self.share < NO_BOUND

    @property
    def so_far(self) -> float:
        """Share of the time that pictures took, 0…1."""
        return _part(self.pictures, self.training)

    def expected(self, pictures: int) -> float | None:
        """Share of the time when the run ends, if so many are drawn until then; None as long as it is not known what a
        step takes."""
        training = self._whole_training
        return _part(self.pictures + pictures * self.each, training) if training else None

    def affordable(self) -> int:
        """Pictures that may still be drawn until the end of the run; 0 as long as that is unknown."""
        if self.share >= NO_BOUND:
            return 10**9
        if not self._count:
            return 0
        allowed = _MARGIN * self.share / (1 - self.share) * self._whole_training
        return max(0, int((allowed - self.pictures) / self.each))

    @property
    def _whole_training(self) -> float:
        """Seconds of training when the run ends."""
        each = self.training / self._steps if self._steps else self.step
        return self.training + each * (self._ahead - self._steps)


def _part(one: float, other: float) -> float:
    return one / (one + other) if one else 0.0


def _round_numbers() -> Iterator[int]:
    """1, 2, 5, 10, 20, …"""
    size = 1
    while True:
        yield from (size, 2 * size, 5 * size)
        size *= 10
