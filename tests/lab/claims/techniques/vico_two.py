"""ViCo with two objects in one picture (Appendix J): two subjects take turns in training, with one set of image blocks,
and are drawn side by side, each with a reference of its own. Identity is that of the first subject; of the other one
the text says whether its class is there."""
from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

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
    BLOCKS,
    EQUATION_5,
    MASKS,
    OTHER,
    Learning,
    Look,
    companion,
    companion_of,
    drawn_by,
    kept_blocks,
    looking,
    part,
    subject_beside,
    train_blocks,
    vico_of,
)


@dataclass(frozen=True)
class TwoWords:
    """Textual Inversion of both subjects by turns, drawn without references."""

    name: str
    learning: Learning
    continues: None = None
    revision: int = 2

    def draw(self, world: World, task: Task, earlier: Cell | None) -> Drawn:
        """See Method."""
        started = time.monotonic()
        learned = kept(self.trained(world, task))
        seconds = time.monotonic() - started
        return Drawn(drawn_beside(world, task, learned, named(task)), learned, {"learning_seconds": seconds})

    def trained(self, world: World, task: Task) -> Trained:
        """Both words."""
        return train(world, subject_of(task, concept_of(task)), [EmbeddingPart(self.learning.embedding_rate)],
                     (DiffusionLoss(),), self.learning.settings(task.seed), others=[subject_beside(task)])


@dataclass(frozen=True)
class TwoLooks(TwoWords):
    """Both words and one set of image blocks, drawn with the first picture of each subject."""

    def trained(self, world: World, task: Task) -> Trained:
        """See TwoWords."""
        return train_blocks(world, task, self.learning, companion=True)


@dataclass(frozen=True)
class Otherwise:
    """What `continues` has learned, drawn otherwise. nouns: the class word follows each learned one. references: used
    where image blocks were trained."""

    name: str
    continues: TwoWords
    nouns: bool = False
    references: bool = True
    revision: int = 1

    def draw(self, world: World, task: Task, earlier: Cell | None) -> Drawn:
        """See Method."""
        learned = {name: tensor for name, tensor in earlier.drawn.learned.items()
                   if self.references or not name.startswith(BLOCKS)}
        return Drawn(drawn_beside(world, task, learned, named(task, self.nouns)))


def kept(trained: Trained) -> dict[str, Tensor]:
    """Vectors of both words, and image blocks if there are any, by names for a cell."""
    vectors = {f"{concept.placeholder}.{key}": vector for concept in trained.concepts
               for key, vector in concept.vectors.items()}
    return vectors | kept_blocks(trained)


@torch.inference_mode()
def drawn_beside(world: World, task: Task, learned: Mapping[str, Tensor], prompts: Sequence[str]) -> dict[int, Tensor]:
    """Number of the prompt -> picture, with both words; where image blocks were trained with a reference of each."""
    starts = concept_of(task), subject_beside(task).concept
    concepts = tuple(concept.with_vectors(part(learned, f"{concept.placeholder}.")) for concept in starts)
    model, blocks = world.networks.model, part(learned, BLOCKS)
    if blocks:
        vico = vico_of(world, blocks, MASKS[EQUATION_5], task.pictures.shape[-1])
        other = companion_of(task).pictures[:1].movedim(1, -1)
        model = looking(world, vico, task.pictures[:1], Look(), image_2=other, words_2=OTHER)[0]
    return drawn_by(world, task, prompts, concepts, model)


def named(task: Task, nouns: bool = False) -> list[str]:
    """The prompts with both learned words, each followed by its class word if `nouns`."""
    own, other = task.identity.kind, companion(task.identity, task.seed).identity.kind
    words = (f"{SUBJECT} {own}", f"{OTHER} {other}") if nouns else (SUBJECT, OTHER)
    return [prompt.replace(article(other), f"a {words[1]}") for prompt in task.prompts(words[0])]


def side_by_side(identity: Identity, seed: int) -> Mapping[str, Sequence[str]]:
    """The subject next to its companion, by class word, in every place."""
    kind = companion(identity, seed).identity.kind
    return {"beside": tuple(f"a photo of a {{}} next to {article(kind)} {phrases[0]}" for phrases in PLACES.values())}


def technique(quick: bool) -> Technique:
    """Class words, both learned words, and both with their references; then what it may be that mixes the two up."""
    learning = Learning()
    if quick:
        learning = replace(learning, steps=4, batch=2)
    words, looks = TwoWords("TI", learning), TwoLooks("ViCo", learning)
    methods = (ClassWord(), words, looks, Otherwise("ViCo-words-alone", looks, references=False),
               Otherwise("TI-with-nouns", words, nouns=True), Otherwise("ViCo-with-nouns", looks, nouns=True))
    against = {"TI": "class-word", "ViCo": "TI", "ViCo-words-alone": "ViCo", "TI-with-nouns": "TI",
               "ViCo-with-nouns": "ViCo"}
    return Technique(methods, against, side_by_side)
