"""Every bundled workflow."""
from __future__ import annotations

from pathlib import Path

from .context_graphs import CONTEXT_GRAPHS
from .detex_graphs import DETEX_GRAPHS
from .graphs import GRAPHS
from .vico_graphs import VICO_GRAPHS
from .visual_graphs import VISUAL_GRAPHS

ALL_GRAPHS = (*GRAPHS, *VISUAL_GRAPHS, *VICO_GRAPHS, *CONTEXT_GRAPHS, *DETEX_GRAPHS)


def template(name: str) -> Path:
    """The finished workflow of a graph."""
    return next(graph.path for graph in ALL_GRAPHS if graph.name == name)
