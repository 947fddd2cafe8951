"""Node classes of this room."""
from .nodes_concept import NODES as CONCEPT_NODES
from .nodes_prompts import NODES as PROMPT_NODES

NODES: list[type] = [*CONCEPT_NODES, *PROMPT_NODES]
