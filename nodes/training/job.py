"""A whole training as one call: from models, subjects and settings to concepts, weights and files."""
from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping, Sequence

from torch import Tensor

import comfy.model_management as mm

from ..files import in_use
from ..notice import notice
from ..text.concept import Concept, initial_vectors
from ..text.embedding_files import file_stems, load_embedding
from ..text.encoders import text_encoders
from ..text.placeholders import filled
from ..weight_files import check_numbers, read_state_dict
from .batch import Recipe, Subject
from .dataset import check_vae, encode_pictures
from .failures import OutOfMemory, TrainingDiverged, fitting, is_out_of_memory, lighter
from .interfaces import LossTerm
from .loop import Settings, Trainer
from .optimizer import state_size
from .parts.part import WEIGHTS, Artifact, AttachedPart, TrainablePart, TrainingRun, Vectors
from .passes import check_same_family
from .preflight import Saves, check_places, check_room, clear_away
from .preview import draw_preview
from .progress import Live
from .run_folder import RunFolder
from .run_key import run_key
from .saved_steps import kept_files, missing_file, reconciled
from .saving import Learned, NotSaved, Saver
from .session import Session, training_session


@dataclass(frozen=True)
class Job:
    """What to train, on what, and what to save on the way.

    save_every, preview_every: steps between saved files and between previews, 0 for only at the end and for none.
    preview_prompt: its {} becomes the first subject's placeholder.
    start_over: forget what an earlier run with the same settings has done.
    use_step: return the files saved at this step in place of the last one; 0 for the last.
    """

    name: str
    model: Any
    clip: Any
    vae: Any
    subjects: tuple[Subject, ...]
    parts: tuple[TrainablePart, ...]
    terms: tuple[LossTerm, ...]
    recipe: Recipe
    settings: Settings
    precision: str = "auto"
    save_every: int = 0
    preview_every: int = 0
    preview_prompt: str = "a photo of {}"
    start_over: bool = False
    use_step: int = 0
    node: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What a job gives: concepts with learned vectors, a LoRA file's tensors, and the run's report."""

    concepts: tuple[Concept, ...]
    weights: dict[str, Tensor] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)


def run_job(job: Job) -> Outcome:
    """Trains, or returns what an earlier run with the same settings has already learned.

    On interruption, on a loss that is no number, and on any other exception the work up to the last finished step is
    saved before the exception goes on. Raises ValueError with one sentence for input that cannot be trained.
    """
    _check(job)
    folder = RunFolder(job.name, run_key(job))
    if job.use_step:
        return _saved_outcome(job, folder)
    with training_session(job.model, job.clip, job.precision) as session, \
            Live(folder.run, job.name, job.node, job.settings.steps) as live:
        try:
            return _Run(job, folder, live, session).train()
        except Exception as error:
            if is_out_of_memory(error):
                error = OutOfMemory("Memory ran out beside the steps of the training; close what else uses it, or set size "
                                    "of Subject lower.")
            if isinstance(error, (ValueError, OSError)):
                live.send("error", message=str(error))
            raise error


class _Run:
    """One execution of a job inside its session."""

    def __init__(self, job: Job, folder: RunFolder, live: Live, session: Session):
        self.job, self.folder, self.live, self.session = job, folder, live, session
        self.saver = Saver(folder, live, job.settings.steps)

    def train(self) -> Outcome:
        job, session = self.job, self.session
        resumed = None if job.start_over else self.folder.state(job.settings.steps)
        done = resumed[1] if resumed else 0
        data = None
        kinds = [kind for kind, _ in kept_files(job.parts)]
        clear_away(kinds)
        if done < job.settings.steps:
            check_places(self.folder, [s.concept for s in job.subjects], kinds, job.settings.steps)
            data = encode_pictures(job.vae, session.model, job.subjects, job.settings.seed)
        self._attach()
        trainer = Trainer(session, job.subjects, data, self.attached, job.terms, job.recipe, job.settings, self.frozen)
        if resumed:
            trainer.load_state_dict(*resumed)
            self.folder.drop_earlier_states(resumed[0], done)  # a killed run may have left one
            self.live.report.update(_known(job, self.folder), history=list(trainer.history))
        self.live.send("start", name=job.name, total=job.settings.steps, first_step=done, resumed_from=done,
                       groups=[g.name for part in self.attached for g in part.groups],
                       terms=[term.name for term in job.terms])
        if done < job.settings.steps:
            check_room(self.folder, self._saves(trainer))
            with in_use(self.folder.path):
                self._loop(trainer, done)
        else:
            self._save(trainer, last=True, state_too=False)
        return self._outcome(trainer)

    def _attach(self) -> None:
        job, session = self.job, self.session
        run = TrainingRun(session.model, session.clip, job.subjects, session.device, job.settings.seed)
        self.attached: list[AttachedPart] = []
        with fitting("The models and the parts to train do", lighter(job.parts)):
            self.attached += [part.attach(run) for part in job.parts]
            _check_words(self.attached)
            session.load()
        trained = {name for part in self.attached for name in part.learned_vectors()}
        self.frozen: Vectors = {s.concept.placeholder: initial_vectors(s.concept, job.clip) for s in job.subjects
                                if s.concept.placeholder not in trained}

    def _loop(self, trainer: Trainer, done: int) -> None:
        check_same_family(self.session)
        trainer.rehearse()
        if _due(done, self.job.preview_every) and done not in [p["step"] for p in self.live.report["previews"]]:
            self._preview(done)  # also one that a killed run has not come to
        saved_at = trainer.step
        try:
            trainer.run(self._after_step)
        except (TrainingDiverged, OutOfMemory) as error:
            where = self._saved_in_the_end(trainer) if trainer.step > saved_at else ""
            raise type(error)(f"{error} {where}".strip()) from error
        except BaseException:
            if trainer.step > saved_at:
                self.live.send("end", step=trainer.step, total=self.job.settings.steps, stopped=True,
                               message=self._saved_in_the_end(trainer))
            raise
        message = self._save(trainer, last=True)
        self.live.send("end", step=trainer.step, total=self.job.settings.steps, message=message,
                       stopped=trainer.step < self.job.settings.steps)

    def _saved_in_the_end(self, trainer: Trainer) -> str:
        """What was saved, or what could not be, where the run ends by another exception."""
        try:
            return self._save(trainer, last=True)
        except NotSaved as error:
            return str(error)

    def _after_step(self, trainer: Trainer, record: dict) -> bool:
        job, step = self.job, record["step"]
        self.live.step(record)
        last = step == job.settings.steps
        if not last and (_due(step, job.save_every) or self.live.take("save")):
            self._save(trainer, last=False)
        if job.preview_every and (_due(step, job.preview_every) or last) or self.live.take("sample"):
            self._preview(step)
        return not self.live.take("stop")

    def _preview(self, step: int) -> None:
        """A picture that cannot be drawn is left out, and training goes on."""
        size = self.job.subjects[0].pictures[0].variants.shape[1:3]
        prompt = filled(self.job.preview_prompt, self.job.subjects[0].concept.placeholder)
        failed = None
        try:
            picture = draw_preview(self.session, self.job.vae, prompt, self._vectors(), size, self.job.settings.seed)
        except mm.InterruptProcessingException:
            raise
        except Exception as error:
            failed = ("drawing it does not fit into memory beside the training; set preview_every to 0, or size of Subject "
                      "lower" if is_out_of_memory(error) else str(error).strip().rstrip(".") or type(error).__name__)
        # only now, as the error held what was drawn so far
        mm.soft_empty_cache()
        self.session.load()
        if failed is None:
            self.saver.save_preview(picture, step)
        else:
            notice(f"The preview at step {step} is left out: {failed}. Training goes on.")

    def _saves(self, trainer: Trainer) -> Saves:
        """What is still to be saved."""
        job, done, steps = self.job, trainer.step, self.job.settings.steps
        state = trainer.state_dict()
        size, count = sum(t.nbytes for t in state.values()), len(state)
        if not done:
            more = state_size(job.settings.optimizer, [group for part in self.attached for group in part.groups])
            size, count = size + more[0], count + more[1]
        ahead = range(done + 1, steps + 1)
        pictures = [step for step in range(done, steps + 1) if _due(step, job.preview_every)]
        return Saves([step for step in ahead if _due(step, job.save_every) or step == steps], self._concepts(steps),
                     [Artifact(*WEIGHTS, self._weights()), *self._artifacts()], size, count, len(pictures),
                     job.subjects[0].pictures[0].variants[0].numel())

    def _save(self, trainer: Trainer, last: bool, state_too: bool = True) -> str:
        """Returns the sentence that says where everything is. Raises NotSaved."""
        step = trainer.step
        learned = Learned(step, self._concepts(step), self._weights(), self._artifacts(),
                          trainer.state_dict() if state_too else {}, trainer.history)
        return self.saver.save(learned, last)

    def _artifacts(self) -> list[Artifact]:
        return [artifact for part in self.attached for artifact in part.files()]

    def _outcome(self, trainer: Trainer) -> Outcome:
        return Outcome(self._concepts(trainer.step), self._weights(), dict(self.live.report))

    def _vectors(self) -> dict[str, Mapping[str, Tensor]]:
        return {**self.frozen, **{name: v for part in self.attached for name, v in part.learned_vectors().items()}}

    def _weights(self) -> dict[str, Tensor]:
        return {name: t.cpu() for part in self.attached for name, t in part.weights().items()}

    def _concepts(self, step: int) -> tuple[Concept, ...]:
        vectors = self._vectors()
        about = {"run": self.folder.run, "step": str(step), "model": type(self.session.model.model).__name__}
        return tuple(s.concept.with_vectors(vectors[s.concept.placeholder], {**s.concept.settings, **about})
                     for s in self.job.subjects)


def _check(job: Job) -> None:
    names = [s.concept.placeholder for s in job.subjects]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ValueError(f"Two subjects share the placeholder {twice}; give each Subject node a Concept of its own.")
    file_stems(names)
    text_encoders(job.clip)
    check_vae(job.vae)


def _check_words(parts: Sequence[AttachedPart]) -> None:
    counts = Counter(name for part in parts for name in part.placeholders)
    twice = next((name for name, count in counts.items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"Two parts at trainable train the vectors of {twice}; keep one of them. Train ViCo trains them "
                         "as well, unless its embedding_learning_rate is 0.")


def _known(job: Job, folder: RunFolder) -> dict[str, Any]:
    return reconciled(folder.report(), [s.concept.placeholder for s in job.subjects], job.parts)


def _saved_outcome(job: Job, folder: RunFolder) -> Outcome:
    """The concepts and weights that an earlier execution saved at `use_step`."""
    report, step = _known(job, folder), job.use_step
    saved = {s["step"]: s for s in report["saved"]}
    if step not in saved:
        said = next((s for s in folder.report()["saved"] if s["step"] == step), None)
        deleted = said and missing_file(said)
        if deleted:
            raise ValueError(f"use_step is {step} but its file {deleted} has been deleted; choose another step, or 0 for "
                             "the last.")
        raise ValueError(f"use_step is {step} but this run has saved steps {', '.join(map(str, saved)) or 'none'}; choose "
                         "one of them, or 0 for the last.")
    if saved[step].get("left_out"):
        raise ValueError(f"use_step is {step} but the trained weights were saved only at the last step, as files of "
                         f"more than 300 MB are; set use_step to 0, or train anew with steps set to {step}.")
    files = [Path(file) for file in saved[step]["files"]]
    encoders, about = text_encoders(job.clip), {"run": folder.run, "step": str(step)}
    concepts = tuple(subject.concept.with_vectors(load_embedding(file, encoders)[0], {**subject.concept.settings, **about})
                     for subject, file in zip(job.subjects, files, strict=False))
    weights = _read_trained(files[-1]) if len(files) > len(concepts) else {}
    return Outcome(concepts, weights, report)


def _read_trained(path: Path) -> dict[str, Tensor]:
    weights = read_state_dict(path, "file of trained weights")
    check_numbers(path, weights.items())
    return weights


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
