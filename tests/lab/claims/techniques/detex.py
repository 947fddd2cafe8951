"""DETEX (Cai et al. 2024): a word apart from the pose and the background of its pictures, against four methods, its
ablations, and what keeping a picture's pose or background does.

As there, prompts say "[v] class" where the method learns so, and methods that train weights see pictures of the class.
"""
from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from miniature.factors import ANIMATE
from personalize.nodes.papers.detex.nodes_train import ATTRIBUTE_WORDS
from personalize.nodes.papers.detex.parts import AttributesPart
from personalize.nodes.papers.detex.recipe import AttributeRecipe
from personalize.nodes.papers.detex.seeing import vision_fingerprint
from personalize.nodes.papers.detex.terms import AttributeAttentionLoss
from personalize.nodes.papers.detex.words import ATTRIBUTES, BACKGROUND, POSE, attribute_word, with_attributes
from personalize.nodes.text.apply import apply_concepts
from personalize.nodes.text.concept import Concept
from personalize.nodes.training.applied import with_weights
from personalize.nodes.training.batch import Prior, Subject
from personalize.nodes.training.diffusion import DiffusionLoss
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.parts.part import TrainablePart
from personalize.nodes.training.parts.weights import KeyValuePart, UNetPart
from personalize.nodes.training.prior import PriorPreservation
from personalize.nodes.training.recipe import TemplateRecipe
from support.pictures import MadePicture

from ..bounds import SUBJECT, ClassWord, Truth
from ..store import Cell, Drawn
from ..task import Task
from ..technique import Method, Technique
from ..training import Trained, train
from ..world import World
from .core import STAGE_1, Learning, concept_of
from .vico import Learning as ViCoLearning
from .vico import ViCo, part

LEARNING = replace(STAGE_1, rate=1e-4)  # of keys and values; the word's rate is Textual Inversion's
MAPPER_RATE = 1e-3
U_NET_RATE = 2e-5
CLASS_PICTURES = 24                     # the paper: 200
WORD, WEIGHT = "word.", "weight."


def subject_with(task: Task, world: World, count: int, prior: bool, masked: bool = True) -> Subject:
    """The task's first `count` references with their masks, and pictures of the class."""
    pairs = zip(task.pictures[:count], task.masks[:count], strict=True)
    pictures = tuple(MadePicture(picture.movedim(0, -1)[None], mask if masked else None) for picture, mask in pairs)
    return Subject(concept_of(task), pictures, class_pictures(world, task) if prior else None)


@functools.lru_cache(maxsize=2)
def _drawn_class(world: World, kind: str, seed: int, sampling) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(CLASS_PICTURES, world.latent_channels, 16, 16, generator=draw)
    return world.draw_each([world.encode(f"a photo of a {kind}")] * CLASS_PICTURES, noise, sampling)


def class_pictures(world: World, task: Task) -> Prior:
    """Pictures that the model draws of the class, with λ = 1."""
    kind = task.identity.kind
    drawn = _drawn_class(world, kind, task.seed, task.sampling)
    caption = f"Photo of a {kind}"
    return Prior(tuple(MadePicture(each.movedim(0, -1)[None], caption=caption) for each in drawn))


@dataclass(frozen=True)
class Plain:
    """A baseline: parts that are trained, and whether pictures of the class are seen."""

    name: str
    learning: Learning
    continues: None = None
    revision: int = 1

    def draw(self, world: World, task: Task, earlier: Cell | None) -> Drawn:
        """See Method."""
        started, kind, parts = time.monotonic(), task.identity.kind, self._parts()
        weights = len(parts) > 1
        terms = (DiffusionLoss(), PriorPreservation()) if weights else (DiffusionLoss(),)
        template = f"Photo of a {{}} {kind}" if weights else "a photo of a {}"
        trained = train(world, subject_with(task, world, len(task.pictures), weights), parts, terms,
                        self.learning.settings(task.seed), TemplateRecipe((template,)))
        seconds = time.monotonic() - started
        words = f"{SUBJECT} {kind}" if weights else SUBJECT
        return Drawn(dict(enumerate(_drawn(world, task, words, [trained.concept], trained.weights))),
                     figures={"learning_seconds": seconds})

    def _parts(self) -> Sequence[TrainablePart]:
        word = EmbeddingPart(STAGE_1.rate)
        return {"TI": (word,), "Custom-Diffusion": (word, KeyValuePart(self.learning.rate)),
                "DreamBooth": (word, UNetPart(U_NET_RATE))}[self.name]


@dataclass(frozen=True)
class Detex:
    """The whole method and its ablations. attention: λ_CA. filtered: γ. mapped, inside: as for its part and recipe.
    pose_is: the word behind [P], "" by whether the class lives. pictures: of the training."""

    name: str
    learning: Learning
    attention: float = 0.01
    filtered: float = 0.5
    mapped: bool = True
    inside: bool = False
    pose_is: str = ""
    pictures: int = 5
    continues: None = None
    revision: int = 1

    def draw(self, world: World, task: Task, earlier: Cell | None) -> Drawn:
        """See Method."""
        started = time.monotonic()
        trained = self._trained(world, task)
        seconds = time.monotonic() - started
        learned = {**_named(WORD, trained.concept.vectors), **_named(WEIGHT, trained.weights)}
        for attribute in ATTRIBUTES:
            learned |= _named(f"{attribute}.", _first_word(trained, attribute))
        pictures = drawn_keeping(world, task, learned, (), self.word_of_poses(task))
        return Drawn(pictures, learned, {"learning_seconds": seconds, **trained.figures()})

    def word_of_poses(self, task: Task) -> str:
        """The word behind [P]."""
        lives = "animate" if task.identity.kind in ANIMATE else "inanimate"
        return self.pose_is or ATTRIBUTE_WORDS[lives]

    def _trained(self, world: World, task: Task) -> Trained:
        pose_is = self.word_of_poses(task)
        seen = world.vision if self.mapped else None
        parts = (EmbeddingPart(STAGE_1.rate), KeyValuePart(self.learning.rate),
                 AttributesPart(seen, vision_fingerprint(seen), self.mapped, pose_is, MAPPER_RATE))
        terms = (DiffusionLoss(), AttributeAttentionLoss(self.attention), PriorPreservation())
        return train(world, subject_with(task, world, self.pictures, True), parts,
                     tuple(term for term in terms if term.weight), self.learning.settings(task.seed),
                     AttributeRecipe(pose_is, self.filtered, inside=self.inside))


@dataclass(frozen=True)
class Keeping:
    """What `continues` has learned, drawn with attributes of the first reference."""

    name: str
    continues: Detex
    kept: tuple[str, ...]
    revision: int = 1

    def draw(self, world: World, task: Task, earlier: Cell | None) -> Drawn:
        """See Method."""
        assert earlier is not None
        return Drawn(drawn_keeping(world, task, earlier.drawn.learned, self.kept, self.continues.word_of_poses(task)))


def drawn_keeping(world: World, task: Task, learned: Mapping[str, Tensor], kept: Sequence[str], pose_is: str
                  ) -> dict[int, Tensor]:
    """Pictures by number, with the words of the first reference's attributes `kept` in the prompt."""
    concepts = [concept_of(task).with_vectors(part(learned, WORD))]
    words = dict.fromkeys(ATTRIBUTES, "")
    for attribute in kept:
        words[attribute] = attribute_word(SUBJECT, attribute, 1)
        concepts.append(Concept(words[attribute], "", attribute).with_vectors(part(learned, f"{attribute}.")))
    said = with_attributes(f"{SUBJECT} {task.identity.kind}", words[POSE], pose_is, words[BACKGROUND])
    return dict(enumerate(_drawn(world, task, said, concepts, part(learned, WEIGHT))))


def _drawn(world: World, task: Task, words: str, concepts: Sequence[Concept], weights: Mapping[str, Tensor]) -> Tensor:
    model, clip = with_weights(world.networks.model, world.networks.clip, weights)
    return task.draw(world, words, apply_concepts(clip, tuple(concepts)), model)


def _first_word(trained: Trained, attribute: str) -> Mapping[str, Tensor]:
    """Vectors of the first reference's word, of the embedding that was saved for it."""
    stem = attribute_word(SUBJECT, attribute, 1).strip("<>")
    return next(file.tensors for file in trained.files if file.name == stem)


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def technique(quick: bool) -> Technique:
    """Table 1, Table 3's and Table 4's ablations, Figs. 10 to 12, and the attributes that a prompt keeps."""
    learning, vico = LEARNING, ViCoLearning()
    if quick:
        learning, vico = replace(learning, steps=2), replace(vico, steps=2, batch=2)
    baselines: tuple[Method, ...] = (*(Plain(name, learning) for name in ("TI", "Custom-Diffusion", "DreamBooth")),
                                     ViCo("ViCo", vico))
    detex = Detex("DETEX", learning)
    changed = (
        replace(detex, name="DETEX-no-mapper", mapped=False),
        replace(detex, name="DETEX-no-attention-loss", attention=0.0),
        replace(detex, name="DETEX-no-joint-training", filtered=0.0),
        replace(detex, name="DETEX-all-filtered", filtered=1.0),
        replace(detex, name="DETEX-masked-diffusion-loss", inside=True),
        *(replace(detex, name=f"DETEX-{word}", pose_is=word) for word in ATTRIBUTE_WORDS.values()),
        *(replace(detex, name=f"DETEX-pictures-{count}", pictures=count) for count in (1, 2, 3, 4)),
    )
    keeping = (Keeping("DETEX-keep-pose", detex, (POSE,)), Keeping("DETEX-keep-background", detex, (BACKGROUND,)),
               Keeping("DETEX-keep-both", detex, (POSE, BACKGROUND)))
    against = {"DETEX": "Custom-Diffusion", **{method.name: "DETEX" for method in (*changed, *keeping)}}
    return Technique((Truth(), ClassWord(), *baselines, detex, *changed, *keeping), against)
