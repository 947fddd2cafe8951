"""Settings that cannot act: each is said in one sentence before a training begins."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ..notice import notice
from ..text.placeholders import Placeholders
from ..text.prompts import SLOT
from .batch import Prior, Subject
from .diffusion import DiffusionLoss
from .interfaces import LossTerm
from .parts.embedding import EmbeddingPart
from .parts.part import TrainablePart
from .parts.weights import AdapterPart
from .plan import Settings

NO_DECAY = ("Rprop",)


@dataclass(frozen=True)
class Shown:
    """What is known of one subject's pictures. captioned: how many have a caption. masked: how many have a mask; None
    where that is not known."""

    placeholder: str
    pictures: int
    captioned: int
    masked: int | None
    prior: Prior | None = None


@runtime_checkable
class Remarks(Protocol):
    """A recipe that may say more of the pictures it gets."""

    def remarks(self, subjects: Sequence[Shown]) -> Iterator[str]:
        """A sentence for each thing that cannot act, or not as a person expects."""


@dataclass(frozen=True)
class Setting:
    """A training as far as its settings go, before anything is loaded."""

    settings: Settings
    parts: Sequence[TrainablePart]
    terms: Sequence[LossTerm]
    recipe: Any
    subjects: Sequence[Shown]
    save_every: int = 0
    preview_every: int = 0
    preview_prompt: str = SLOT


def idle_settings(training: Setting) -> list[str]:
    """A sentence for each setting that cannot act, with what it would need."""
    of_recipe = training.recipe.remarks(training.subjects) if isinstance(training.recipe, Remarks) else ()
    return [*_of_train(training), *_of_parts(training), *_of_losses(training), *_of_pictures(training), *of_recipe]


def _of_train(training: Setting) -> Iterator[str]:
    how, steps = training.settings, training.settings.steps
    if how.warmup_steps >= steps:
        yield (f"warmup_steps is {how.warmup_steps} of {steps} steps, so the learning rate never comes to its full "
               "value; set it lower.")
    if how.micro_batch > how.batch_size:
        yield (f"micro_batch {how.micro_batch} is more than batch_size {how.batch_size}: all pictures are computed at "
               "once.")
    if training.save_every > steps:
        yield f"save_every {training.save_every} is more than the {steps} steps: only the last one is saved."
    if training.preview_every > steps:
        yield (f"preview_every {training.preview_every} is more than the {steps} steps: only the picture before "
               "training is drawn.")
    if how.optimizer in NO_DECAY and how.weight_decay:
        yield f"{how.optimizer} takes no weight_decay: {how.weight_decay:g} does not act."
    words = [subject.placeholder for subject in training.subjects]
    prompt = training.preview_prompt
    if training.preview_every and SLOT not in prompt and not Placeholders(words).find(prompt):
        yield f"preview_prompt holds neither {{}} nor {' or '.join(words)}: the previews do not show what is learned."


def _of_parts(training: Setting) -> Iterator[str]:
    for part in training.parts:
        name = part.label or "embedding"
        if getattr(part, "lr", 1.0) == 0:
            yield f"The learning rate of what is trained as {name} is 0: it stays as it is."
        if isinstance(part, EmbeddingPart) and part.rescaled:
            yield from _of_window("Rescaling on Train Embedding", "rescale_first_step", *part.rescaled, training)
        if isinstance(part, AdapterPart) and part.alpha == 0 and part.algorithm != "OFT":
            yield f"alpha of Train Adapter is 0: the {part.algorithm} counts 0 times and learns nothing."


def _of_losses(training: Setting) -> Iterator[str]:
    for term in training.terms:
        if term.weight == 0:
            yield f"The weight of the loss '{term.name}' is 0: it does not act."
        yield from _of_window(f"The loss '{term.name}'", "first_step", *term.window, training)
    if training.terms and all(term.weight == 0 for term in training.terms):
        yield "No loss has a weight, so that nothing is learned."


def _of_window(what: str, name: str, first: int, last: int, training: Setting) -> Iterator[str]:
    steps = training.settings.steps
    if first > steps:
        yield f"{what} would begin at step {first} of {steps} and does not act; set {name} lower or steps higher."
    elif last < first:
        yield f"{what} would end at step {last}, before it begins at step {first}, and does not act."
    elif steps < last < 10**9:
        yield f"{what} would last until step {last}; the training ends at step {steps}."


def _of_pictures(training: Setting) -> Iterator[str]:
    captions = getattr(training.recipe, "captions", True)
    uses_masks = any(getattr(each, "uses_masks", False) for each in (*training.parts, *training.terms, training.recipe))
    wants_masks = [term.name for term in training.terms if isinstance(term, DiffusionLoss) and term.background != 1]
    for subject in training.subjects:
        if subject.captioned and not captions:
            yield (f"{subject.captioned} pictures of {subject.placeholder} have captions, which use_captions of "
                   "Training Prompts leaves out.")
        if subject.masked and not uses_masks:
            yield (f"The masks of {subject.placeholder} are not used: background_weight of Diffusion Loss is 1; set "
                   "it lower to learn less of the background.")
        if subject.masked == 0 and wants_masks:
            yield (f"background_weight of Diffusion Loss needs masks, and the pictures of {subject.placeholder} have "
                   "none; connect masks to Subject.")
        if subject.prior and subject.prior.weight == 0:
            yield f"The weight of the Prior Pictures of {subject.placeholder} is 0: they cost time and do not act."


def tell_idle(plan: Any) -> None:
    """Says at the node, when a training begins, which of its settings cannot act. plan: a `Job`."""
    said = idle_settings(Setting(plan.settings, plan.parts, plan.terms, plan.recipe, tuple(map(_shown, plan.subjects)),
                                 plan.save_every, plan.preview_every, plan.preview_prompt))
    if said:
        notice(" ".join(said))


def _shown(subject: Subject) -> Shown:
    pictures = subject.pictures
    return Shown(subject.concept.placeholder, len(pictures), sum(bool(each.caption) for each in pictures),
                 sum(each.masked for each in pictures), subject.prior)
