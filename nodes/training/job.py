"""A whole training as one call: from models, subjects and settings to concepts, weights and files."""
from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..files import in_use
from ..notice import notice
from ..text.apply import layered_words
from ..text.concept import Concept
from ..text.embedding_files import file_stems
from .assembly import open_training
from .dataset import check_vae
from .drawing import RunPictures
from .failures import OutOfMemory, TrainingDiverged, is_out_of_memory
from .graph_records import remember_graph
from .idle import tell_idle
from .loop import State, Trainer
from .next_run import CONTINUE, RESULTS, Choice, NextRun, next_run, usable_steps
from .optimizer import state_size
from .outcome import Outcome, known_report, saved_outcome
from .parts.part import WEIGHTS, Artifact
from .plan import Plan
from .preflight import Saves, check_places, check_room, clear_away
from .progress import RUNS, Live, Origin
from .run_folder import RunFolder, forget_stop
from .run_key import run_key
from .run_name import run_name
from .saved_steps import kept_files
from .saving import Learned, NotSaved, Saver
from .validation import Validation


@dataclass(frozen=True)
class Job(Plan):
    """A plan, and what is saved on the way.

    name: of the run; empty for `run_name`. save_every, preview_every: steps between saved files and between previews,
    0 for only at the end and for none. preview_prompt: its {} becomes the first subject's placeholder. validation: the
    pictures in place of that one, None for it. workflow: that the job was started from, as the page saves it.
    resume: one of RESUME, what becomes of an earlier run with the same plan.
    use_step: return the files saved at this step in place of the last one; 0 for the last. use_step_of: the run that it
    was chosen of, as in `Choice`. node: id of the Train node. graph: the name of what is in front of it, if it has one.
    """

    name: str = ""
    save_every: int = 0
    preview_every: int = 0
    preview_prompt: str = "a photo of {}"
    resume: str = CONTINUE
    use_step: int = 0
    use_step_of: str = ""
    node: str | None = None
    graph: str | None = None
    validation: Validation | None = None
    workflow: Any = None

    @property
    def workflow_id(self) -> str:
        """What the page calls the workflow; "" for one that is no page's."""
        found = (self.workflow or {}).get("id")
        return found if isinstance(found, str) else ""


def run_job(job: Job) -> Outcome:
    """Trains, or returns what an earlier run with the same plan has already learned.

    On interruption, on a loss that is no number, and on any other exception the work up to the last finished step is
    saved before the exception goes on. Raises ValueError with one sentence for input that cannot be trained.
    """
    _check(job)
    folder = folder_of(job)
    origin = Origin(folder.run, job.workflow_id, job.node)
    step = _chosen_step(job, folder.run)
    if step:
        RUNS.note(origin)
        outcome = saved_outcome(job, folder, step)
        remember_graph(folder, job.graph)
        RESULTS.given(folder.run, lambda: step in usable_steps(folder.run))
        return outcome
    with Live(origin, job.settings.steps) as live, _telling_failure(live):
        following = next_run(folder, job.settings.steps, job.resume)
        resumed = _resumed(folder, following)
        ends_at = following.ends_at if resumed and resumed.step == following.step else job.settings.steps
        kinds = [kind for kind, _ in kept_files(job.parts)]
        clear_away(kinds)
        if resumed is None or resumed.step < ends_at:
            check_places(folder, [s.concept for s in job.subjects], kinds, job.settings.steps)
        with open_training(job, resumed) as trainer:
            outcome = _Run(job, folder, live, trainer, ends_at).finish(resumed)
    given = NextRun("returns", trainer.step, job.settings.steps)
    RESULTS.given(folder.run, lambda: _returns_the_same(folder, given))
    return outcome


def folder_of(job: Job) -> RunFolder:
    """Where the job's run keeps what it leaves."""
    return RunFolder(job.name.strip() or run_name(job.subjects, job.parts), run_key(job))


def _chosen_step(job: Job, run: str) -> int:
    """0 for the last one, also where the choice does not apply, which is told."""
    why = Choice(job.use_step, job.use_step_of).why_void(run)
    if why == "settings":
        notice(f"The choice of step {job.use_step} of the run {job.use_step_of} does not apply, as the settings are "
               f"others now: this is the run {run}.")
    if why == "deleted":
        notice(f"The choice of step {job.use_step} does not apply, as its files have been deleted.")
    return 0 if why else job.use_step


def _resumed(folder: RunFolder, following: NextRun) -> State | None:
    if not following.step:
        return None
    found = folder.state(following.step)
    return State(*found) if found else None


def _returns_the_same(folder: RunFolder, given: NextRun) -> bool:
    now = next_run(folder, given.steps)
    return (now.act, now.step) == (given.act, given.step)


@contextlib.contextmanager
def _telling_failure(live: Live) -> Iterator[None]:
    """The page is told in one sentence why the run failed."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            error = OutOfMemory("Memory ran out beside the steps of the training; close what else uses it, or set size "
                                "of Subject lower.")
        if isinstance(error, (ValueError, OSError)):
            live.send("error", message=str(error))
        raise error  # noqa: TRY201  it may be another one by now


class _Run:
    """What a training leaves on the disk and on the page. ends_at: the step that is returned, in all or where a person
    stopped it before."""

    def __init__(self, job: Job, folder: RunFolder, live: Live, trainer: Trainer, ends_at: int):
        self.job, self.folder, self.live, self.trainer, self.ends_at = job, folder, live, trainer, ends_at
        self.saver = Saver(folder, live, job.settings.steps)
        words = [subject.concept.placeholder for subject in job.subjects]
        single = Validation((job.preview_prompt,))
        self.pictures = RunPictures(trainer, job.vae, job.validation or single, words if job.validation else words[:1],
                                    job.preview_every, self.saver)

    def finish(self, resumed: State | None) -> Outcome:
        """Trains up to the end, from where an earlier run has come to."""
        job, trainer, done = self.job, self.trainer, self.trainer.step
        if resumed is not None:
            self.folder.drop_earlier_states(resumed.tensors, done)  # a killed run may have left one
            self.live.report.update(known_report(job, self.folder), history=list(trainer.history))
        self.live.send("start", total=job.settings.steps, first_step=done, resumed_from=done,
                       groups=[group.name for group in trainer.groups], terms=[term.name for term in job.terms])
        if done < self.ends_at:
            check_room(self.folder, self._saves())
            with in_use(self.folder.path):
                self.saver.save_about(job, job.workflow)
                self._train()
        else:
            self._save(last=True, state_too=False)
            remember_graph(self.folder, job.graph)
        return Outcome(self._concepts(trainer.step), trainer.weights(), dict(self.live.report))

    def _train(self) -> None:
        trainer, done, steps = self.trainer, self.trainer.step, self.job.settings.steps
        tell_idle(self.job)
        trainer.rehearse()
        self.live.report["stopped"] = {}
        forget_stop(self.folder.run)
        remember_graph(self.folder, self.job.graph)
        self.pictures.begin()
        try:
            trainer.run(self._after_step)
        except (TrainingDiverged, OutOfMemory) as error:
            where = self._saved_in_the_end() if trainer.step > done else ""
            raise type(error)(f"{error} {where}".strip()) from error
        except BaseException:
            if trainer.step > done:
                self.live.send("end", step=trainer.step, total=steps, stopped=False, message=self._saved_in_the_end())
            raise
        self.pictures.end()
        if trainer.step < steps:
            self.live.report["stopped"] = {"step": trainer.step, "steps": steps}
        message = self._save(last=True)
        self.live.send("end", step=trainer.step, total=steps, message=message, stopped=trainer.step < steps)

    def _saved_in_the_end(self) -> str:
        """What was saved, or what could not be, where the run ends by another exception."""
        try:
            return self._save(last=True)
        except NotSaved as error:
            return str(error)

    def _after_step(self, trainer: Trainer, record: dict) -> bool:
        job, step = self.job, record["step"]
        self.live.step(record)
        last = step == job.settings.steps
        if not last and (_due(step, job.save_every) or self.live.take("save")):
            self._save(last=False)
        self.pictures.after_step(step, now=self.live.take("sample"))
        return not self.live.take("stop")

    def _saves(self) -> Saves:
        """What is still to be saved."""
        job, trainer, done, steps = self.job, self.trainer, self.trainer.step, self.job.settings.steps
        state = trainer.state().tensors
        size, count = sum(t.nbytes for t in state.values()), len(state)
        if not done:
            more = state_size(job.settings.optimizer, trainer.groups)
            size, count = size + more[0], count + more[1]
        ahead = range(done + 1, steps + 1)
        pictures = len([step for step in range(done, steps + 1) if _due(step, job.preview_every)])
        return Saves([step for step in ahead if _due(step, job.save_every) or step == steps], self._concepts(steps),
                     [Artifact(*WEIGHTS, trainer.weights()), *trainer.files()], size, count,
                     pictures * len(self.pictures.scenes), 3 * math.prod(self.pictures.size))

    def _save(self, last: bool, state_too: bool = True) -> str:
        """Returns the sentence that says where everything is. Raises NotSaved."""
        trainer, step = self.trainer, self.trainer.step
        state = trainer.state().tensors if state_too else {}
        learned = Learned(step, self._concepts(step), trainer.weights(), trainer.files(), state, trainer.history)
        return self.saver.save(learned, last)

    def _concepts(self, step: int) -> tuple[Concept, ...]:
        vectors, model = self.trainer.vectors(), self.trainer.session.model.model
        about = {"run": self.folder.run, "step": str(step), "model": type(model).__name__}
        return tuple(s.concept.with_vectors(vectors[s.concept.placeholder], {**s.concept.settings, **about})
                     for s in self.job.subjects)


def _check(job: Job) -> None:
    names = [s.concept.placeholder for s in job.subjects]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ValueError(f"Two subjects share the placeholder {twice}; give each Subject node a Concept of its own.")
    file_stems(names)
    layered = layered_words(job.clip)
    if layered:
        raise ValueError(f"The CLIP was taught {layered[0]} by Apply Per-Layer Concept, which acts while pictures are "
                         "drawn; connect the CLIP from before that node, and the concept to Subject.")
    check_vae(job.vae)


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
