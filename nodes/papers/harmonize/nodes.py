"""Node classes of this room."""
from .nodes_orthogonal import NODES as ORTHOGONAL_NODES
from .nodes_swap import NODES as SWAP_NODES

NODES: list[type] = [*ORTHOGONAL_NODES, *SWAP_NODES]
