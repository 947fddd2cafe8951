"""Node classes of this room, and the addresses that its page asks."""
from ..page import add_routes
from . import estimate_routes, picture_routes, routes
from .nodes_custom_diffusion import NODES as CUSTOM_DIFFUSION_NODES
from .nodes_export import NODES as EXPORT_NODES
from .nodes_low_rank import NODES as LOW_RANK_NODES
from .nodes_masks import NODES as MASK_NODES
from .nodes_parts import NODES as PART_NODES
from .nodes_per_layer import NODES as PER_LAYER_NODES
from .nodes_prior import NODES as PRIOR_NODES
from .nodes_steps import NODES as STEP_NODES
from .nodes_subject import NODES as SUBJECT_NODES
from .nodes_train import NODES as TRAIN_NODES
from .nodes_validation import NODES as VALIDATION_NODES

add_routes((*routes.ROUTES, *picture_routes.ROUTES, *estimate_routes.ROUTES))  # ty: ignore[invalid-argument-type]  all are RouteDef
NODES: list[type] = [*SUBJECT_NODES, *MASK_NODES, *PRIOR_NODES, *PART_NODES, *PER_LAYER_NODES, *VALIDATION_NODES,
                     *TRAIN_NODES, *STEP_NODES, *LOW_RANK_NODES, *CUSTOM_DIFFUSION_NODES, *EXPORT_NODES]
