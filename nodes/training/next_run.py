"""What running a training with the same settings does next. Decided by what is on the disk alone, so that it is the
same with ComfyUI's cache, without it and after a restart."""
from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .run_folder import RunFolder, saved_report
from .saved_steps import missing_file

CONTINUE, START_OVER, CONTINUE_STOPPED = RESUME = ("continue", "start over", "continue stopped")

Act = Literal["returns", "continues", "trains", "starts over", "fails"]


@dataclass(frozen=True)
class NextRun:
    """act: "returns" a step, "continues" after one, "trains" from the beginning, "starts over" although there may be
    something, or "fails" as a step is asked for that is not saved. step: which one, 0 for the beginning. steps: in all.
    why: of what is returned."""

    act: Act
    step: int
    steps: int
    why: Literal["", "finished", "stopped", "chosen"] = ""

    @property
    def ends_at(self) -> int:
        """The step whose result it gives, if nobody stops it."""
        return self.step if self.act == "returns" else self.steps


def next_run(folder: RunFolder, steps: int, resume: str = CONTINUE) -> NextRun:
    """Of a run of `steps` steps in all. A step at which a person stopped it is its end, for as long as `steps` stays
    the same and nobody continues it; a run that ended early in any other way goes on by itself."""
    if resume == START_OVER:
        return NextRun("starts over", 0, steps)
    stopped = 0 if resume == CONTINUE_STOPPED else stopped_at(folder.report(), steps)
    if stopped and folder.furthest_state(stopped) == stopped:
        return NextRun("returns", stopped, steps, "stopped")
    done = folder.furthest_state(steps)
    if done == steps:
        return NextRun("returns", done, steps, "finished")
    return NextRun("continues" if done else "trains", done, steps)


def stopped_at(report: Mapping[str, Any], steps: int) -> int:
    """The step at which a person stopped a run of `steps` steps, 0 if nobody did."""
    stop = report["stopped"]
    return stop["step"] if stop.get("steps") == steps and type(stop.get("step")) is int else 0


@dataclass(frozen=True)
class Choice:
    """A step that a person wants to have returned. run: the run that it was chosen of; "" for whichever it is."""

    step: int = 0
    run: str = ""

    def why_void(self, run: str) -> str:
        """Why it does not apply to this run: "settings" or "deleted"; "" if it does, or if it names no run."""
        if not self.step or not self.run:
            return ""
        if self.run != run:
            return "settings"
        return "" if self.step in usable_steps(run) else "deleted"


def usable_steps(run: str) -> list[int]:
    """Steps whose files are all there; none of "", which is no run yet."""
    return [] if not run else [saved["step"] for saved in saved_report(run)["saved"] if not missing_file(saved)]


class Results:
    """What Train has returned in this process, for ComfyUI's cache: it may give the same once more for as long as the
    disk says so. Asked and told by several threads."""

    def __init__(self) -> None:
        self._holds: dict[str, Callable[[], bool]] = {}
        self._changes: dict[str, int] = {}
        self._lock = threading.Lock()

    def given(self, run: str, holds: Callable[[], bool]) -> None:
        """A result of a run was returned; holds: whether running again would return the same."""
        with self._lock:
            self._holds[run] = holds

    def changes(self, name: str | None) -> int:
        """How often results under this name of a run, or under any where there is none, have ceased to hold."""
        with self._lock:
            for run in [run for run, holds in self._holds.items() if not holds()]:
                del self._holds[run]
                self._changes[run] = self._changes.get(run, 0) + 1
            return sum(count for run, count in self._changes.items() if not name or run[:-9] == name)


RESULTS = Results()
