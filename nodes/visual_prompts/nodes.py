"""Node classes of this room."""
from .nodes_blip_diffusion import NODES as BLIP_DIFFUSION_NODES
from .nodes_elite import NODES as ELITE_NODES
from .nodes_ip_adapter import NODES as IP_ADAPTER_NODES
from .nodes_prompt import NODES as PROMPT_NODES

NODES: list[type] = [*IP_ADAPTER_NODES, *BLIP_DIFFUSION_NODES, *ELITE_NODES, *PROMPT_NODES]
