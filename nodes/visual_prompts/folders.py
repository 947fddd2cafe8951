"""ComfyUI's model folders for picture encoders, and what is in them."""
from __future__ import annotations

import folder_paths

from ..model_files import register_folder

IP_ADAPTER_FOLDER = "ipadapter"  # the name under which other packs and extra_model_paths.yaml know it
ELITE_FOLDER = "elite"
BLIP_DIFFUSION_FOLDER = "blip_diffusion"

for kind in (IP_ADAPTER_FOLDER, ELITE_FOLDER, BLIP_DIFFUSION_FOLDER):
    register_folder(kind, folder_paths.supported_pt_extensions)
