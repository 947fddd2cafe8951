"""One record of a run for the page, the files and whoever asks; one object of commands from the page to the run."""
from __future__ import annotations

import math
import threading
from typing import Any, Literal

import comfy.utils
from server import PromptServer

Command = Literal["stop", "save", "sample"]
EVENT = "personalize.training"


class Live:
    """A run in progress: what it has reported and what it was told to do.

    name: what the person wrote at the node. run: the same, as a folder's name with the start of the fingerprint.
    report: {run, history, previews, saved, message}, the same object that the node shows when it has ended.
    """

    _runs: dict[str, Live] = {}

    def __init__(self, run: str, name: str, node: str | None, total: int):
        self.run, self.name, self.node = run, name, node
        self.report: dict[str, Any] = {"run": run, "history": [], "previews": [], "saved": [], "message": ""}
        self._commands: set[Command] = set()
        self._lock = threading.Lock()
        self._bar = comfy.utils.ProgressBar(total)

    def __enter__(self) -> Live:
        Live._runs[self.run] = self
        return self

    def __exit__(self, *_) -> None:
        Live._runs.pop(self.run, None)

    @staticmethod
    def find(run: str) -> Live | None:
        """The run of that name, while it is in progress."""
        return Live._runs.get(run)

    @staticmethod
    def in_progress() -> list[Live]:
        """All runs in progress."""
        return list(Live._runs.values())

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

    def step(self, record: dict) -> None:
        """One optimiser step is done."""
        self.report["history"].append(jsonable(record))
        self._bar.update_absolute(record["step"], record["total"])
        self.send("step", **record)

    def send(self, kind: str, **data: Any) -> None:
        """Tells the page; numbers that are not finite arrive as null."""
        PromptServer.instance.send_sync(EVENT, jsonable({"node": self.node, "run": self.run, "kind": kind, **data}))


def jsonable(value: Any) -> Any:
    """A copy in which numbers that JSON does not know are None."""
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
