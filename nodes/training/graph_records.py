"""Which graphs led to which run: kept beside the run, so that the page can be told what Run will do before any model is
loaded."""
from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..files import NotWritten, version_of, write_text
from ..foreign.text import read_text
from ..locations import OUTPUT, first_folder
from ..run_files import GRAPHS, RUNS
from .run_folder import RunFolder

MOST_GRAPHS = 100  # that are kept of a run, the newest
MOST_BYTES = 2**16

_READ: dict[Path, tuple[str, dict[str, Any]]] = {}


def remember_graph(folder: RunFolder, graph: str | None) -> None:
    """Keeps that `graph`, as `graph_signature` names it, leads to this run; None for a graph without a name."""
    path = folder.path / GRAPHS
    known = _read(path).get("graphs", [])
    if graph is None or graph in known[-1:]:
        return
    graphs = [*(each for each in known if each != graph), graph][-MOST_GRAPHS:]
    try:
        write_text(path, json.dumps({"fingerprint": folder.key, "graphs": graphs}))
    except NotWritten:
        pass  # only the page's line would have needed it; what else cannot be written is told


def run_of_graph(graph: str) -> RunFolder | None:
    """The run that a graph led to, if that is still there."""
    for path, about in _all():
        if graph in about.get("graphs", ()):
            run = path.parent.relative_to(_root()).as_posix()
            return RunFolder(run.rpartition("-")[0], about["fingerprint"])
    return None


def _all() -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in _root().rglob(GRAPHS):
        yield path, _read(path)


def _root() -> Path:
    return first_folder(OUTPUT) / RUNS


def _read(path: Path) -> dict[str, Any]:
    """{} for what is no record of graphs."""
    version = version_of(path)
    known = _READ.get(path)
    if known is None or known[0] != version:
        known = _READ[path] = version, _parsed(path)
    return known[1]


def _parsed(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(read_text(path, MOST_BYTES))
        graphs, key = about["graphs"], about["fingerprint"]
        is_ours = isinstance(key, str) and isinstance(graphs, list) and all(isinstance(each, str) for each in graphs)
        return about if is_ours and path.parent.name.endswith(f"-{key[:8]}") else {}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
