"""Node classes of this room."""
from .nodes_subject import NODES as SUBJECT_NODES

NODES: list[type] = [*SUBJECT_NODES]
