"""A training of the pack on a task's pictures, without files."""
from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from personalize.nodes.text.concept import Concept
from personalize.nodes.training.assembly import open_training
from personalize.nodes.training.batch import Recipe, Subject
from personalize.nodes.training.interfaces import LossTerm
from personalize.nodes.training.loop import Trainer
from personalize.nodes.training.parts.part import Artifact, TrainablePart
from personalize.nodes.training.plan import Plan, Settings
from personalize.nodes.training.recipe import TemplateRecipe
from support.pictures import MadePicture

from .task import Task
from .world import World


@dataclass(frozen=True)
class Trained:
    """What a training gives: the concepts in the order of the subjects, a LoRA file's tensors, one record a step, and
    the parts' own files."""

    concepts: tuple[Concept, ...]
    weights: Mapping[str, Tensor]
    history: Sequence[Mapping[str, Any]]
    files: Sequence[Artifact] = ()

    @property
    def concept(self) -> Concept:
        """That of the first subject."""
        return self.concepts[0]

    def figures(self) -> dict[str, float]:
        """How hard each further term pulls beside the diffusion loss: the mean ratio of their gradients' norms, over
        the groups of parameters that it pulls at."""
        measured = [record["norms"] for record in self.history[1:]]
        terms = dict.fromkeys(name.partition("|")[0] for norms in measured for name in norms)
        return {f"gradient_of_{term.replace(' ', '_')}": statistics.fmean(
            _ratio(norms, term, "diffusion") for norms in measured if norms) for term in terms if term != "diffusion"}


def _ratio(norms: Mapping[str, float], term: str, beside: str) -> float:
    """Of two gradients' lengths; norms: "term|group" -> length."""
    groups = [group for name, group in (key.split("|") for key in norms) if name == term and norms[f"{term}|{group}"]]
    length, other = (math.hypot(*(norms[f"{name}|{group}"] for group in groups)) for name in (term, beside))
    return length / other if groups else 0.0


def subject_of(task: Task, concept: Concept) -> Subject:
    """The task's reference pictures under the concept's name, as they are: without augmentation."""
    return Subject(concept, tuple(MadePicture(picture.movedim(0, -1)[None]) for picture in task.pictures))


def train(world: World, subject: Subject, parts: Sequence[TrainablePart], terms: Sequence[LossTerm], settings: Settings,
          recipe: Recipe = TemplateRecipe(), each_step: Callable[[Trainer], None] = lambda trainer: None,
          others: Sequence[Subject] = ()) -> Trained:
    """Runs the pack's own loop to its end; the checkpoint stays as it was.

    each_step: called after every step, while the models are ready for gradients. others: subjects that take turns with
    `subject`.
    """
    subjects = (subject, *others)

    def after_step(trainer: Trainer, record: dict) -> bool:
        each_step(trainer)
        return True

    plan = Plan(*world.networks, subjects, tuple(parts), tuple(terms), recipe, settings)
    with open_training(plan) as trainer:
        trainer.run(after_step)
        vectors = trainer.vectors()
        concepts = tuple(each.concept.with_vectors(vectors[each.concept.placeholder]) for each in subjects)
        return Trained(concepts, trainer.weights(), trainer.history, trainer.files())
