"""The one place where a training is put together."""
from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from ..families.find import unet_of
from ..text.concept import check_layers, initial_vectors
from ..text.vectors import Vectors, WordVectors
from .batch import Latents, PreparesPictures
from .dataset import Dataset, encode_pictures
from .failures import OF_TRAIN, NodeInputs, fitting, lighter
from .interfaces import BringsWords
from .loop import State, Trainer
from .parts.part import AttachedPart, TrainingRun
from .plan import Plan
from .session import Session, training_session


@contextlib.contextmanager
def open_training(plan: Plan, resumed: State | None = None, *, latents: Latents | None = None,
                  words: Vectors | None = None, session: Session | None = None, inputs: NodeInputs = OF_TRAIN
                  ) -> Iterator[Trainer]:
    """A training ready to run; after it, also after an error, both models are as they were.

        with open_training(plan) as trainer:
            trainer.run(lambda trainer, record: True)
            concept = concept.with_vectors(trainer.vectors()[concept.placeholder])

    resumed: goes on from there. latents: in place of the subjects' pictures, which are encoded only where steps are
    left. words: vectors of further words in prompts. session: an open one, in place of one of the plan's models; what
    parts attach to its model stays until it closes. inputs: of the node at hand, for messages.

    Raises ValueError with one sentence for what cannot be trained, OutOfMemory where it does not fit.
    """
    if isinstance(plan.recipe, PreparesPictures):
        plan = replace(plan, subjects=plan.recipe.prepared(plan.subjects))
    with contextlib.ExitStack() as stack:
        if session is None:
            session = stack.enter_context(training_session(plan.model, plan.clip, plan.precision))
        if latents is None:
            latents = _pictures(plan, session, resumed)
        parts = _attach(plan, session)
        for part in parts:
            stack.enter_context(part.installed())
        frozen = {**(words or {}), **_words_of_terms(plan), **_untrained(plan, parts)}
        trainer = Trainer(session, plan, parts, latents, frozen, inputs)
        if resumed is not None:
            trainer.resume(resumed)
        yield trainer


def _pictures(plan: Plan, session: Session, resumed: State | None) -> Dataset:
    """The subjects' pictures; none where no step is left."""
    if resumed is not None and resumed.step >= plan.settings.steps:
        return Dataset(())
    return encode_pictures(plan.vae, session.model, plan.subjects, plan.settings.seed)


def _attach(plan: Plan, session: Session) -> list[AttachedPart]:
    """The plan's parts on the session's models, which are loaded then."""
    run = TrainingRun(session.model, session.clip, plan.subjects, session.device, plan.settings.seed)
    with fitting("The models and the parts to train do", lighter(plan.parts)):
        parts = [part.attach(run) for part in plan.parts]
        _check_words(parts)
        _check_weights(parts)
        _check_bypassed(parts)
        session.load()
    _check_words_arrive(plan, parts)
    return parts


def _check_words(parts: Sequence[AttachedPart]) -> None:
    twice = _first_twice(name for part in parts for name in part.placeholders)
    if twice is not None:
        raise ValueError(f"Two parts at trainable train the vectors of {twice}; keep one of them. Train ViCo trains "
                         "them as well, unless its embedding_learning_rate is 0.")


def _check_weights(parts: Sequence[AttachedPart]) -> None:
    """Raises ValueError if one file could not hold what two parts learn."""
    twice = _first_twice(name for part in parts for name in part.weight_names())
    if twice is not None:
        raise ValueError(f"Two parts at trainable train the same weights ({twice.rpartition('.')[0]}); keep one of "
                         "them. Train U-Net holds all that Train Key/Value trains.")


def _first_twice(names: Iterable[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _check_bypassed(parts: Sequence[AttachedPart]) -> None:
    """Raises TypeError if a part would change a model also where a loss compares with the original one."""
    for part in parts:
        changes_model = "unet" in part.touches or not part.placeholders
        if changes_model and part.touches and type(part).bypassed is AttachedPart.bypassed:
            side = "U-Net" if "unet" in part.touches else "text encoder"
            raise TypeError(f"{type(part).__name__} touches the {side} and has no bypassed, without which a reference "
                            "is not the original model's")


def _check_words_arrive(plan: Plan, parts: Sequence[AttachedPart]) -> None:
    """Raises TypeError if a part leaves a word of its own to previews or inference as plain text."""
    kept = {subject.concept.placeholder for subject in plan.subjects}
    for settings, part in zip(plan.parts, parts, strict=True):
        unseen = part.placeholders.keys() - part.shown_vectors().keys()
        if unseen:
            raise TypeError(f"{type(part).__name__}.shown_vectors leaves out {', '.join(sorted(unseen))}")
        lost = part.placeholders.keys() - (part.learned_vectors().keys() & kept)
        if lost and not settings.keeps:
            raise TypeError(f"{type(settings).__name__} keeps no file that carries {', '.join(sorted(lost))} to "
                            "inference")


def _words_of_terms(plan: Plan) -> Vectors:
    """What stands in the prompts of loss terms beside the concepts' words."""
    found: dict[str, WordVectors] = {}
    for term in plan.terms:
        if isinstance(term, BringsWords):
            found.update(term.words)
    return found


def _untrained(plan: Plan, parts: Sequence[AttachedPart]) -> Vectors:
    """Vectors of the subjects whose words no part trains."""
    trained = {name for part in parts for name in part.learned_vectors()}
    found = {subject.concept.placeholder: initial_vectors(subject.concept, plan.clip) for subject in plan.subjects
             if subject.concept.placeholder not in trained}
    for name, vectors in found.items():
        if vectors.axis == "layer":
            check_layers(name, vectors, len(unet_of(plan.model).layers))
    return found
