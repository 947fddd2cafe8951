"""A stock checkpoint as a folder in the layout of diffusers, which ComfyUI's DiffusersLoader reads."""
from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

PARTS = {"unet/diffusion_pytorch_model.safetensors": "model.diffusion_model.",
         "text_encoder/model.safetensors": "cond_stage_model.transformer.",
         "vae/diffusion_pytorch_model.safetensors": "first_stage_model."}


def split(checkpoint: Path, folder: Path) -> Path:
    """Writes unet, text_encoder and vae of a checkpoint in ComfyUI's format into `folder`, once; returns it."""
    for name, prefix in PARTS.items():
        if not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with safe_open(checkpoint, framework="pt") as file:
                keys = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118
                save_file({key.removeprefix(prefix): file.get_tensor(key) for key in keys}, folder / name)
    return folder
