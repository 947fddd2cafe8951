"""Node classes of this room."""
from . import routes  # noqa: F401  registers the page's addresses
from .nodes_parts import NODES as PART_NODES
from .nodes_subject import NODES as SUBJECT_NODES
from .nodes_train import NODES as TRAIN_NODES

NODES: list[type] = [*SUBJECT_NODES, *PART_NODES, *TRAIN_NODES]
