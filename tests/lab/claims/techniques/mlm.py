"""Diverse context (Kim et al. 2024): each of its four baselines, with and without the masked-language-model loss.

As there, every prompt says "[v] class"; the loss draws rich prompts, the diffusion loss keeps to a simple one.
"""
from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from miniature.prompts import rich_prompts
from personalize.nodes.papers.context.terms import MaskedLanguageLoss
from personalize.nodes.training.applied import with_weights
from personalize.nodes.training.diffusion import DiffusionLoss
from personalize.nodes.training.interfaces import LossTerm
from personalize.nodes.training.nodes_per_layer import PersonalizeApplyPerLayerConcept
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.parts.part import TrainablePart
from personalize.nodes.training.parts.per_layer import PerLayerPart
from personalize.nodes.training.parts.text_encoder import TextEncoderPart
from personalize.nodes.training.parts.weights import KeyValuePart, UNetPart
from personalize.nodes.training.recipe import TemplateRecipe

from ..bounds import SUBJECT, ClassWord, Truth
from ..store import Cell, Drawn
from ..task import Task, many_factors
from ..technique import Method, ReadsContext, Technique
from ..training import subject_of, train
from ..world import World
from .core import STAGE_1, Learning, concept_of

WEIGHT, SHARE = 1e-4, 0.15                    # λ and ρ of the paper
WEIGHTS_TRIED = (1e-5, 5e-4, 1e-2)            # beside it: Table 3's, and one that cannot be overlooked
SHARES_TRIED = (0.5, 0.9)                     # beside it: Table 4's
Parts = Callable[[float], Sequence[TrainablePart]]
BASELINES: Mapping[str, Parts] = {
    "TI": lambda rate: (EmbeddingPart(rate),),
    "XTI": lambda rate: (PerLayerPart(rate),),
    "Custom-Diffusion": lambda rate: (EmbeddingPart(STAGE_1.rate), KeyValuePart(rate)),
    "DreamBooth": lambda rate: (UNetPart(rate), TextEncoderPart(rate)),
}
LEARNING = {"TI": STAGE_1, "XTI": STAGE_1, "Custom-Diffusion": replace(STAGE_1, rate=1e-4),
            "DreamBooth": replace(STAGE_1, rate=2e-5)}


@dataclass(frozen=True)
class Customised:
    """One of BASELINES."""

    name: str
    baseline: str
    learning: Learning
    continues: None = None
    revision: int = 1

    def draw(self, world: World, task: Task, earlier: Cell | None) -> Drawn:
        """See Method."""
        started, kind = time.monotonic(), task.identity.kind
        trained = train(world, subject_of(task, concept_of(task)), BASELINES[self.baseline](self.learning.rate),
                        (DiffusionLoss(), *self._terms(world, task)), self.learning.settings(task.seed),
                        TemplateRecipe((f"a photo of a {{}} {kind}",)))
        figures = {"learning_seconds": time.monotonic() - started, **trained.figures()}
        model, clip = with_weights(world.networks.model, world.networks.clip, trained.weights)
        model, clip = PersonalizeApplyPerLayerConcept.execute(model, clip, (trained.concept,)).args
        pictures = task.draw(world, f"{SUBJECT} {kind}", clip, model)
        return Drawn(dict(enumerate(pictures)), trained.concept.vectors, figures)

    def _terms(self, world: World, task: Task) -> tuple[LossTerm, ...]:
        return ()


@dataclass(frozen=True)
class WithMaskedWords(Customised, ReadsContext):
    """The same with the masked-language-model loss. weight: λ. share: ρ."""

    weight: float = WEIGHT
    share: float = SHARE

    def _terms(self, world: World, task: Task) -> tuple[LossTerm, ...]:
        kind = task.identity.kind
        rich = tuple(template.replace("{}", f"{{}} {kind}") for template in rich_prompts(kind))
        return (MaskedLanguageLoss(rich, world.contextualizer, self.weight, self.share),)


def technique(quick: bool) -> Technique:
    """Table 2's columns, then λ's sweep (Table 3) and ρ's (Table 4) on Textual Inversion."""
    learning = {name: replace(numbers, steps=2) if quick else numbers for name, numbers in LEARNING.items()}
    plain = [Customised(name, name, learning[name]) for name in BASELINES]
    pulled = [WithMaskedWords(f"{name}+MLM", name, learning[name]) for name in BASELINES]
    first = pulled[0]
    swept = [replace(first, name=f"{first.name}-weight-{weight:g}", weight=weight) for weight in WEIGHTS_TRIED]
    swept += [replace(first, name=f"{first.name}-share-{share:g}", share=share) for share in SHARES_TRIED]
    pairs: list[Method] = [method for pair in zip(plain, pulled, strict=True) for method in pair]
    against = {method.name: method.baseline for method in [*pulled, *swept]}
    return Technique((Truth(), ClassWord(), *pairs, *swept), against, many_factors)
