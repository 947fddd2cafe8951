"""Node classes of this room."""
from .nodes_apply import NODES as APPLY_NODES
from .nodes_save import NODES as SAVE_NODES
from .nodes_train import NODES as TRAIN_NODES

NODES: list[type] = [*APPLY_NODES, *TRAIN_NODES, *SAVE_NODES]
