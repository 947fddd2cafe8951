"""Node classes of this room, and the addresses that its page asks."""
from ...page import add_routes
from . import routes
from .nodes_apply import NODES as APPLY_NODES
from .nodes_train import NODES as TRAIN_NODES

add_routes(routes.ROUTES)  # ty: ignore[invalid-argument-type]  all are RouteDef
NODES: list[type] = [*TRAIN_NODES, *APPLY_NODES]
