"""Node classes of this room."""
from .nodes_mask import NODES as MASK_NODES
from .nodes_record import NODES as RECORD_NODES
from .nodes_show import NODES as SHOW_NODES

NODES: list[type] = [*RECORD_NODES, *SHOW_NODES, *MASK_NODES]
