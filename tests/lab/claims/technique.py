"""What a technique gives the claims: methods, each of which turns a task into pictures."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from .store import Cell, Drawn
from .task import Prompts, Task, usual_prompts
from .world import World


class Method(Protocol):
    """A frozen dataclass: its fields, with the task and the files, name a cell, so all that matters must be in them.

    name: one word, shown in the table. continues: method whose cell it starts from, if any.
    revision: raised when the code changes what is drawn.
    """

    name: str
    continues: Method | None
    revision: int

    def draw(self, world: World, task: Task, earlier: Cell | None) -> Drawn:
        """Pictures for the task's templates from `task.noise`. `earlier`: the cell of `continues`."""


class AsksOracle:
    """Marks a method that reads what the oracle said of the cell it continues, or asks it while drawing: another
    oracle, another cell of it."""


class ReadsContext:
    """Marks a method that trains with the contextualizer beside the checkpoint: another file, another cell of it."""


@dataclass(frozen=True)
class Technique:
    """Methods in the order of the table. against: method -> the one that it is compared with, pictures paired.
    prompts: what is drawn."""

    methods: tuple[Method, ...]
    against: Mapping[str, str]
    prompts: Prompts = usual_prompts


def load_technique(name: str, quick: bool) -> Technique:
    """The technique of that name; `quick`: with a handful of steps."""
    from importlib import import_module

    return import_module(f".techniques.{name}", __package__).technique(quick)
