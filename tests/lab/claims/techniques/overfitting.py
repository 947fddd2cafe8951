"""In which settings does plain training lose the prompt? For the tuning subjects alone: --tuning.

DreamBooth trains the whole U-Net beside the word, Custom Diffusion keys and values of the text. The rule by which
settings of other techniques follow: of those in which plain training loses at least 0.15 of the text on hard prompts,
the one with the most likeness; if there is none, that with the most likeness, and the tables say that they cannot tell.
"""
from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import product

from personalize.nodes.training.applied import with_weights
from personalize.nodes.training.diffusion import DiffusionLoss
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.parts.weights import KeyValuePart, UNetPart

from ..bounds import ClassWord, Truth
from ..store import Cell, Drawn
from ..task import Task, many_factors
from ..technique import Method, Technique
from ..training import subject_of, train
from ..world import World
from .core import STAGE_1, Embedding, Learning, concept_of, drawn_with

VECTORS, RATES, STEPS = (1, 4), (5e-3, 2e-2), (150, 600)
PARTS = {"DreamBooth": UNetPart, "Custom-Diffusion": KeyValuePart}
WEIGHT_RATES, WEIGHT_STEPS = {"DreamBooth": (2e-5, 1e-4), "Custom-Diffusion": (1e-4, 1e-3)}, (150, 300)


@dataclass(frozen=True)
class WithWeights:
    """Weights of the U-Net and the word together on the diffusion loss, without pictures of the class. weights: which,
    one of PARTS."""

    name: str
    weights: str
    learning: Learning
    word_rate: float = STAGE_1.rate
    continues: None = None
    revision: int = 1

    def draw(self, world: World, task: Task, earlier: Cell | None) -> Drawn:
        """See Method."""
        started = time.monotonic()
        trained = train(world, subject_of(task, concept_of(task)),
                        [EmbeddingPart(self.word_rate), PARTS[self.weights](self.learning.rate)], (DiffusionLoss(),),
                        self.learning.settings(task.seed))
        seconds = time.monotonic() - started
        model, _ = with_weights(world.networks.model, None, trained.weights)
        pictures = drawn_with(world, task, trained.concept, model)
        return Drawn(dict(enumerate(pictures)), figures={"learning_seconds": seconds})


def technique(quick: bool) -> Technique:
    """Truth, class word, and each kind of training for each rate and number of steps."""
    words = (Embedding(f"TI-{vectors}-{rate:g}-{steps}", replace(STAGE_1, rate=rate, steps=steps), None, rescaled=False,
                       vectors=vectors) for vectors, rate, steps in product(VECTORS, RATES, STEPS))
    weights = (WithWeights(f"{name}-{rate:g}-{steps}", name, replace(STAGE_1, rate=rate, steps=steps))
               for name, steps in product(PARTS, WEIGHT_STEPS) for rate in WEIGHT_RATES[name])
    tried: tuple[Method, ...] = (*words, *weights)
    if quick:
        tried = tuple(replace(method, learning=replace(method.learning, steps=2)) for method in tried)
    return Technique((Truth(), ClassWord(), *tried), {method.name: "class-word" for method in tried}, many_factors)
