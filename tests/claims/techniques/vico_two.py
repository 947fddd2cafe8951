"""ViCo with two objects in one picture (Appendix J): two subjects take turns in training, with one set of image blocks,
and are drawn side by side, each with a reference of its own. Identity is that of the first subject; of the other one the
text says whether its class is there."""
from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Mapping, Sequence

import torch

from miniature.factors import Identity
from miniature.grammar import PLACES, article
from personalize.nodes.training.diffusion import DiffusionLoss
from personalize.nodes.training.parts.embedding import EmbeddingPart

from ..bounds import SUBJECT, ClassWord
from ..store import Cell, Drawn
from ..task import Task
from ..technique import Technique
from ..training import Trained, subject_of, train
from ..world import World
from .core import concept_of
from .vico import (
    EQUATION_5, MASKS, OTHER, Learning, Look, companion, companion_of, drawn_by, looking, subject_beside, train_blocks,
    vico_of,
)


@dataclass(frozen=True)
class TwoWords:
    """Textual Inversion of both subjects by turns, drawn without references."""

    name: str
    learning: Learning
    continues: None = None
    revision: int = 1

    def draw(self, world: World, task: Task, earlier: Cell | None) -> Drawn:
        """See Method."""
        started = time.monotonic()
        trained = self.trained(world, task)
        seconds = time.monotonic() - started
        with torch.inference_mode():
            pictures = drawn_by(world, task, named(task), trained.concepts, self.model(world, task, trained))
        return Drawn(pictures, figures={"learning_seconds": seconds})

    def trained(self, world: World, task: Task) -> Trained:
        """Both words."""
        return train(world, subject_of(task, concept_of(task)), [EmbeddingPart(self.learning.embedding_rate)],
                     (DiffusionLoss(),), self.learning.settings(task.seed), others=[subject_beside(task)])

    def model(self, world: World, task: Task, trained: Trained):
        """What draws."""
        return world.networks.model


@dataclass(frozen=True)
class TwoLooks(TwoWords):
    """Both words and one set of image blocks, drawn with the first picture of each subject."""

    def trained(self, world: World, task: Task) -> Trained:
        """See TwoWords."""
        return train_blocks(world, task, self.learning, companion=True)

    def model(self, world: World, task: Task, trained: Trained):
        """See TwoWords."""
        blocks, = trained.files
        vico = vico_of(world, blocks.tensors, MASKS[EQUATION_5], task.pictures.shape[-1])
        other = companion_of(task).pictures[:1].movedim(1, -1)
        return looking(world, vico, task.pictures[:1], Look(), image_2=other, word_2=OTHER)[0]


def named(task: Task) -> list[str]:
    """The prompts with both learned words."""
    kind = companion(task.identity, task.seed).identity.kind
    return [prompt.replace(article(kind), f"a {OTHER}") for prompt in task.prompts(SUBJECT)]


def side_by_side(identity: Identity, seed: int) -> Mapping[str, Sequence[str]]:
    """The subject next to its companion, by class word, in every place."""
    kind = companion(identity, seed).identity.kind
    return {"beside": tuple(f"a photo of a {{}} next to {article(kind)} {phrases[0]}" for phrases in PLACES.values())}


def technique(quick: bool) -> Technique:
    """Class words, both learned words, and both with their references."""
    learning = Learning()
    if quick:
        learning = replace(learning, steps=4, batch=2)
    methods = ClassWord(), TwoWords("TI", learning), TwoLooks("ViCo", learning)
    return Technique(methods, {"TI": "class-word", "ViCo": "TI"}, side_by_side)
