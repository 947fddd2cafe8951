"""Node classes of this room, and the addresses that its page asks."""
from ..page import add_routes
from . import routes
from .nodes_concept import NODES as CONCEPT_NODES
from .nodes_prompts import NODES as PROMPT_NODES

add_routes(routes.ROUTES)  # ty: ignore[invalid-argument-type]  all are RouteDef
NODES: list[type] = [*CONCEPT_NODES, *PROMPT_NODES]
