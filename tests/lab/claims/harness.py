"""Which cells a claim needs, which of them are there, and making those that are not."""
from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace

import comfyui_version

from .judging import REVISION, judge
from .store import Cell, Drawn, Store
from .task import Task
from .technique import AsksOracle, Method, ReadsContext
from .world import World


class Harness:
    """Cells of one world in one store. say: takes a line for each cell that is made."""

    def __init__(self, world: World, store: Store, say: Callable[[str], None] = print):
        self.world, self.store, self.say = world, store, say

    def key(self, method: Method, task: Task) -> str:
        """A name for everything that the pictures of a cell depend on, except the code."""
        from personalize.nodes.training.fingerprint import fingerprint

        judged = self._judge if _asks_oracle(method) else ""
        read = (self.world.context,) if isinstance(method, ReadsContext) else ()
        return fingerprint(self.world.weights, comfyui_version.__version__, judged, method, task, *read)

    def find(self, method: Method, task: Task) -> Cell | None:
        """The cell, if it was made; pictures that this oracle has not seen yet are judged now."""
        name, key = _name(method, task), self.key(method, task)
        drawn = self.store.drawn(name, key)
        if drawn is None:
            return None
        verdict = self.store.verdict(name, key, self._judge)
        if verdict is None:
            verdict = self.store.save_verdict(name, key, self._judge, judge(self.world, task, drawn.pictures))
        return Cell(drawn, verdict)

    def cell(self, method: Method, task: Task) -> Cell:
        """The cell, made if need be, with those that it continues."""
        found = self.find(method, task)
        if found is not None:
            return found
        earlier = None if method.continues is None else self.cell(method.continues, task)
        self.store.save_drawn(_name(method, task), self.key(method, task), self._make(method, task, earlier))
        return self.find(method, task)

    @property
    def _judge(self) -> str:
        from personalize.nodes.training.fingerprint import fingerprint

        return fingerprint(self.world.judge, REVISION)

    def _make(self, method: Method, task: Task, earlier: Cell | None) -> Drawn:
        _ = self.world.networks  # loading them is no part of the cell's time
        wall, work = time.monotonic(), time.process_time()
        drawn = method.draw(self.world, task, earlier)
        figures = {"seconds": time.monotonic() - wall, "processor_seconds": time.process_time() - work,
                   "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")}
        self.say(
            f"{task.subject} {method.name} seed {task.seed}: {figures['seconds']:.0f} s, load {figures['load']:.1f}"
        )
        return replace(drawn, figures={**figures, **drawn.figures})


def _asks_oracle(method: Method | None) -> bool:
    return method is not None and (isinstance(method, AsksOracle) or _asks_oracle(method.continues))


def _name(method: Method, task: Task) -> tuple[str, str, int]:
    return method.name, task.subject, task.seed
