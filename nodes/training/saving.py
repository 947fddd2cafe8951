"""Saving a run step by step: everything is tried though something fails, and what failed is told."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import NotWritten
from ..locations import readable_path
from ..notice import notice
from ..text.concept import Concept
from .parts.part import Artifact
from .progress import Live
from .run_folder import LARGEST_STATE_PER_SAVE, Attempts, RunFolder


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
        self.live.report["message"] = message = self._message(saved, lost)
        attempts(self.folder.save_report, self.live.report)
        if last and lost:
            raise NotSaved(
                f"{_failed(attempts.failed)}; make room or make the folder writable, then run again: what was "
                f"saved is not trained again. {message}"
            )
        self._tell(attempts.failed)
        return message

    def save_preview(self, picture: Tensor, step: int) -> None:
        """Writes and shows a picture (H, W, 3) in 0…1."""
        attempts = Attempts()
        image = attempts(self.folder.save_preview, picture, step)
        self._tell(attempts.failed)
        if image:
            preview = {"step": step, "image": image}
            self.live.report["previews"] = [p for p in self.live.report["previews"] if p["step"] != step] + [preview]
            self.live.send("preview", **preview)

    def _message(self, saved: Mapping[str, Any], lost: Sequence[NotWritten]) -> str:
        files = ", ".join(readable_path(Path(file)) for file in (*saved["files"], *saved["part_files"]))
        words = f" In a prompt write {' and '.join(saved['embeddings'])}." if saved["embeddings"] else ""
        return (f"Step {saved['step']} of {self.total} is saved{' in part' * bool(lost)}: {files or 'no file'}.{words} "
                f"Losses, previews and the state to continue from are in {readable_path(self.folder.path)}.")

    def _tell(self, failed: Sequence[NotWritten]) -> None:
        if failed:
            notice(f"{_failed(failed)}; everything else is saved. Make room or make the folder writable.")


def _failed(failed: Sequence[NotWritten]) -> str:
    return "Could not write " + "; ".join(f"{readable_path(error.path)} ({error.reason})" for error in failed)
