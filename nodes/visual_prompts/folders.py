"""ComfyUI's model folders for picture encoders, and what is in them."""
from __future__ import annotations

from pathlib import Path

import folder_paths

IP_ADAPTER_FOLDER = "ipadapter"  # the name under which other packs and extra_model_paths.yaml know it
ELITE_FOLDER = "elite"
BLIP_DIFFUSION_FOLDER = "blip_diffusion"


def _register() -> None:
    """Makes models/ipadapter, models/elite and models/blip_diffusion known; folders that users named are kept."""
    for kind in (IP_ADAPTER_FOLDER, ELITE_FOLDER, BLIP_DIFFUSION_FOLDER):
        folder_paths.add_model_folder_path(kind, str(Path(folder_paths.models_dir) / kind))
        folders, extensions = folder_paths.folder_names_and_paths[kind]
        folder_paths.folder_names_and_paths[kind] = (folders, set(extensions) | folder_paths.supported_pt_extensions)


_register()
