"""Every bundled workflow."""
from __future__ import annotations

from .graphs import GRAPHS
from .vico_graphs import VICO_GRAPHS
from .visual_graphs import VISUAL_GRAPHS

ALL_GRAPHS = (*GRAPHS, *VISUAL_GRAPHS, *VICO_GRAPHS)
