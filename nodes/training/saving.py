"""Saving a run step by step: everything is tried though something fails, and what failed is told."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import NotWritten
from ..locations import readable_path
from ..notice import notice
from ..text.concept import Concept
from .parts.part import Artifact
from .plan import Plan
from .progress import Live
from .run_folder import LARGEST_STATE_PER_SAVE, Attempts, RunFolder
from .run_pictures import in_order, save_drawn, save_photograph
from .run_settings import save_settings, save_workflow
from .validation import Scene


class NotSaved(OSError):
    """The end of a run, of which an embedding or trained weights could not be written."""


@dataclass(frozen=True)
class Learned:
    """What a run has learned after a step.

    state, history: what resuming needs; an empty state is not written.
    """

    step: int
    concepts: Sequence[Concept]
    weights: Mapping[str, Tensor]
    artifacts: Sequence[Artifact]
    state: Mapping[str, Tensor]
    history: Sequence[dict]


class Saver:
    """Writes into a run's folders and tells the page. total: steps of the run."""

    def __init__(self, folder: RunFolder, live: Live, total: int):
        self.folder, self.live, self.total = folder, live, total

    def save(self, learned: Learned, last: bool) -> str:
        """Writes files, state and report; returns the sentence that says where they are.

        What could not be written is told. Raises NotSaved only at the last step, where an embedding or trained weights
        are missing; all else is written then.
        """
        step, attempts = learned.step, Attempts()
        saved = self.folder.save_step(step, learned.concepts, learned.weights, last, learned.artifacts, attempts)
        lost = list(attempts.failed)
        self.live.report["saved"] = [s for s in self.live.report["saved"] if s["step"] != step]
        if not lost:
            self.live.report["saved"].append(saved)
            self.live.send("saved", **saved)
        if learned.state and (last or sum(t.nbytes for t in learned.state.values()) <= LARGEST_STATE_PER_SAVE):
            attempts(self.folder.save_state, learned.state, step, learned.history)
        self.live.report["message"] = message = f"{self._message(saved, lost)}{_of_layers(learned)}{self._ending()}"
        attempts(self.folder.save_report, self.live.report)
        if last and lost:
            raise NotSaved(
                f"{_failed(attempts.failed)}; make room or make the folder writable, then run again: what was "
                f"saved is not trained again. {message}"
            )
        self._tell(attempts.failed)
        return message

    def save_about(self, plan: Plan, workflow: Any) -> None:
        """Writes what the run is made with. workflow: None where there is none."""
        self._attempt(save_settings, self.folder.run, plan)
        if workflow:
            self._attempt(save_workflow, self.folder.run, workflow)

    def save_drawn(self, picture: Tensor, step: int, number: int, scene: Scene) -> None:
        """Writes and shows picture `number` (from 0) of a step, (H, W, 3) in 0…1."""
        entry = self._attempt(save_drawn, self.folder.run, picture, step, number, scene)
        if entry:
            name, report = entry["image"]["filename"], self.live.report
            others = [each for each in report["previews"] if each["image"]["filename"] != name]
            report["previews"] = in_order([*others, entry])
            self.live.send("preview", **entry)

    def save_photographs(self, pictures: Iterable[Tensor]) -> None:
        """Writes and shows photographs of the subjects, (H, W, 3) in 0…1."""
        images = [self._attempt(save_photograph, self.folder.run, picture, number)
                  for number, picture in enumerate(pictures, 1)]
        self.live.report["photographs"] = list(filter(None, images))
        self.live.send("photographs", images=self.live.report["photographs"])

    def _attempt(self, write: Callable[..., Any], *args: Any) -> Any:
        """What `write(*args)` returns, or None after telling that it could not be written."""
        attempts = Attempts()
        written = attempts(write, *args)
        self._tell(attempts.failed)
        return written

    def _message(self, saved: Mapping[str, Any], lost: Sequence[NotWritten]) -> str:
        files = ", ".join(readable_path(Path(file)) for file in (*saved["files"], *saved["part_files"]))
        words = f" In a prompt write {' and '.join(saved['embeddings'])}." if saved["embeddings"] else ""
        return (f"Step {saved['step']} of {self.total} is saved{' in part' * bool(lost)}: {files or 'no file'}.{words} "
                f"Losses, previews and the state to continue from are in {readable_path(self.folder.path)}.")

    def _ending(self) -> str:
        if not self.live.report["stopped"]:
            return ""
        return " Run returns this step from now on, as a person stopped it there; Continue on the node trains on."

    def _tell(self, failed: Sequence[NotWritten]) -> None:
        if failed:
            notice(f"{_failed(failed)}; everything else is saved. Make room or make the folder writable.")


def _of_layers(learned: Learned) -> str:
    words = [concept.placeholder for concept in learned.concepts if concept.vectors.axis == "layer"]
    return (f" That is the mean of the layers' vectors of {' and '.join(words)}: Apply Per-Layer Concept gives each "
            "layer its own." if words else "")


def _failed(failed: Sequence[NotWritten]) -> str:
    return "Could not write " + "; ".join(f"{readable_path(error.path)} ({error.reason})" for error in failed)
