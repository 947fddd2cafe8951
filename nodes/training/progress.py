"""One record of a run for the page, the files and whoever asks; one object of commands from the page to the run."""
from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import comfy.utils

from ..page import tell

log = logging.getLogger("personalize")

Command = Literal["stop", "save", "sample"]
EVENT = "personalize.training"
RECORDS_SHOWN = 1000
LINES_LOGGED = 10
TELL_EVERY = 0.25  # seconds: steps are told to the page together where they are faster


@dataclass(frozen=True)
class Origin:
    """What the page knows a run by. run: its folder's name. workflow: id of the workflow, "" for one that is no page's.
    node: id of the Train node."""

    run: str
    workflow: str
    node: str | None


class Runs:
    """The runs in progress in this process, and the last one of each node, for the threads that ask about them."""

    def __init__(self) -> None:
        self._lives: dict[str, Live] = {}
        self._last: dict[tuple[str, str | None], Origin] = {}

    def find(self, run: str) -> Live | None:
        """The run of that name, while it is in progress."""
        return self._lives.get(run)

    def last_of_nodes(self) -> list[Origin]:
        """The last run of each node, in progress or not."""
        return list(self._last.values())

    def note(self, origin: Origin) -> None:
        """A node has begun a run, or returns what one has learned."""
        self._last[origin.workflow, origin.node] = origin

    def add(self, live: Live) -> None:
        """A run has begun."""
        self._lives[live.run] = live
        self.note(live.origin)

    def remove(self, live: Live) -> None:
        """A run has ended."""
        if self._lives.get(live.run) is live:
            del self._lives[live.run]


RUNS = Runs()


class Live:
    """A run in progress: what it has reported and what it was told to do.

    report: {run, history, previews, saved, message, stopped}, the same object that the node shows when it has ended;
    stopped: {step, steps: in all} where a person stopped it, else {}.
    """

    def __init__(self, origin: Origin, total: int):
        self.origin, self.run = origin, origin.run
        self.report: dict[str, Any] = {"run": self.run, "history": [], "previews": [], "saved": [], "message": "",
                                       "stopped": {}}
        self._commands: set[Command] = set()
        self._lock = threading.Lock()
        self._bar = comfy.utils.ProgressBar(total)
        self._untold: list[dict] = []
        self._told = 0.0

    def __enter__(self) -> Live:
        RUNS.add(self)
        return self

    def __exit__(self, *_) -> None:
        RUNS.remove(self)

    def command(self, command: Command) -> None:
        """Asks the run to do something after its current step; called from another thread."""
        with self._lock:
            self._commands.add(command)

    def take(self, command: Command) -> bool:
        """Whether the command was given since it was last taken."""
        with self._lock:
            given = command in self._commands
            self._commands.discard(command)
            return given

    def given(self, command: Command) -> bool:
        """Whether the command waits to be taken."""
        with self._lock:
            return command in self._commands

    def step(self, record: dict) -> None:
        """One optimiser step is done."""
        step, total = record["step"], record["total"]
        record = jsonable(record)
        self.report["history"].append(record)
        self._untold.append(record)
        if step * LINES_LOGGED // total > (step - 1) * LINES_LOGGED // total:
            log.info("%s: step %d of %d, loss %.4g", self.run, step, total, record["loss"])
        if step == total or time.monotonic() - self._told >= TELL_EVERY:
            self._tell_steps()

    def send(self, kind: str, **data: Any) -> None:
        """Tells the page, and the log how a run has ended; numbers that are not finite arrive as null."""
        self._tell_steps()
        if kind == "end":
            log.info(data["message"])
        self._tell(kind, jsonable(data))

    def _tell_steps(self) -> None:
        if self._untold:
            self._bar.update_absolute(self._untold[-1]["step"], self._untold[-1]["total"])
            self._tell("steps", {"records": self._untold})
            self._untold, self._told = [], time.monotonic()

    def _tell(self, kind: str, data: dict[str, Any]) -> None:
        tell(EVENT, {**asdict(self.origin), "kind": kind, **data})


def shown_report(report: Mapping[str, Any]) -> dict[str, Any]:
    """A report with at most RECORDS_SHOWN step records, evenly chosen, the first and the last among them.

    Of neighbours of which one is kept it is one with gradient norms, as they are not measured in every step.
    """
    history = list(report["history"])
    if len(history) > RECORDS_SHOWN:
        first, *between, last = history
        size = -(-len(between) // (RECORDS_SHOWN - 2))
        neighbours = (between[start:start + size] for start in range(0, len(between), size))
        history = [first, *map(_kept, neighbours), last]
    return {**report, "history": history}


def _kept(neighbours: Sequence[dict]) -> dict:
    return next((record for record in neighbours if record.get("norms")), neighbours[-1])


def jsonable(value: Any) -> Any:
    """A copy in which numbers that JSON does not know are None."""
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
