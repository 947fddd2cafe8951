"""What no method can beat, and what every method must: the ends of the scale."""
from __future__ import annotations

import math
import random
from dataclasses import dataclass

from miniature.data import draw_all, pictures_tensor
from miniature.factors import COLOR_NAMES, SPOKEN_COLORS, Color, Identity, Scene, Second, color_rgb
from miniature.grammar import Said, identity_words, said

from .store import Cell, Drawn
from .task import Task
from .world import World

SUBJECT = "<it>"


@dataclass(frozen=True)
class ClassWord:
    """The prompts with the bare class word: all of the text, and of the identity only what chance gives."""

    name: str = "class-word"
    continues: None = None
    revision: int = 1

    def draw(self, world: World, task: Task, earlier: Cell | None) -> Drawn:
        """See Method."""
        return Drawn(dict(enumerate(task.draw(world, task.identity.kind))))


@dataclass(frozen=True)
class NearestWords:
    """The prompts with the class word and the nearest looks that a caption can say: how far language alone goes."""

    name: str = "nearest-words"
    continues: None = None
    revision: int = 1

    def draw(self, world: World, task: Task, earlier: Cell | None) -> Drawn:
        """See Method."""
        near = nearest_named(task.identity)
        return Drawn(dict(enumerate(task.draw(world, f"{identity_words(near)} {near.kind}"))))


def nearest_named(identity: Identity) -> Identity:
    """With the colours that are nearest in RGB among those that have words, and the most similar pattern."""
    pattern = {"diagonal": "striped", "rings": "spotted"}.get(identity.pattern, identity.pattern)
    return Identity(identity.kind, pattern, _nearest(identity.first), _nearest(identity.second))


def _nearest(color: Color) -> Color:
    return min(SPOKEN_COLORS, key=lambda other: math.dist(color_rgb(color), color_rgb(other)))


@dataclass(frozen=True)
class Truth:
    """The subject itself, drawn by the renderer as each prompt asks and passed through the autoencoder: what the oracle
    makes of pictures without fault."""

    name: str = "truth"
    continues: None = None
    revision: int = 1

    def draw(self, world: World, task: Task, earlier: Cell | None) -> Drawn:
        """See Method."""
        scenes = [self._scene(task, prompt) for prompt in task.prompts(SUBJECT)]
        return Drawn(dict(enumerate(world.reconstruct(pictures_tensor(draw_all(scenes))))))

    @staticmethod
    def _scene(task: Task, prompt: str) -> Scene:
        asked, rng = said(prompt), random.Random(f"{task.seed} {task.subject} {prompt}")
        second = Second(asked.relation, asked.second_kind) if asked.second_kind else None
        return Scene(_identity(task, asked), asked.pose or "standing", asked.accessory or "none",
                     asked.background or "meadow",
                     asked.style or "photo", second, rng.randrange(2**31))


def _identity(task: Task, asked: Said) -> Identity:
    """The subject's, or one colour in place of its looks where the prompt asks for that."""
    if asked.first is None:
        return task.identity
    color = Color(2 * COLOR_NAMES.index(asked.first))
    return Identity(task.identity.kind, "plain", color, color)
