"""Small files of picture encoders in ComfyUI's model folders, under the names that the bundled workflows use."""
from __future__ import annotations

import shutil
from pathlib import Path

from .paths import CACHE, PACK

IP_ADAPTER, VIT_H, VIT_L = ("ip-adapter-plus_sd15.safetensors", "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors",
                            "clip-vit-large-patch14.safetensors")
BLIP_DIFFUSION, PICTURE = "blipdiffusion", "example.png"
STOCK_WIDTH = 768
WIDE = [("input", 7), ("input", 8), ("middle", 0), *(("output", i) for i in (3, 4, 5))]  # of the tiny SD1.5


def provide(base: Path) -> None:
    """Puts them, and a reference picture, below the base directory of a server."""
    import torch
    from safetensors.torch import save_file

    from tiny import blip_diffusion, checkpoints, diffusers_folder, elite, ip_adapter, vision
    from tiny.models import UNET_CHANNELS, WIDTH_L

    from .ip_adapter_by_hand import SD15

    models = base / "models"
    for folder in ("ipadapter", "clip_vision", "elite", "diffusers"):
        (models / folder).mkdir(parents=True, exist_ok=True)
    channels = {block: UNET_CHANNELS * (2 if block in WIDE else 1) for block, _ in SD15}
    content = ip_adapter.state_dict("plus", vision.WIDTH, WIDTH_L, list(channels.values()))
    save_file(ip_adapter.flat(content), models / "ipadapter" / IP_ADAPTER)
    for name in (VIT_H, VIT_L):
        save_file(vision.state_dict(), models / "clip_vision" / name)
    for seed, name in enumerate(("global_mapper.pt", "local_mapper.pt")):
        torch.save(elite.state_dict(channels, vision.WIDTH, WIDTH_L, seed), models / "elite" / name)
    shutil.copy(PACK / "workflows" / "assets" / "example-toy" / "toy-1.jpg", base / "input" / PICTURE)
    blip = models / "diffusers" / BLIP_DIFFUSION
    blip.mkdir()
    stock = checkpoints.cached("sd15_stock", CACHE / "checkpoints")
    for part in diffusers_folder.split(stock, stock.with_suffix("")).iterdir():
        (blip / part.name).symlink_to(part, target_is_directory=True)
    blip_diffusion.write(blip, STOCK_WIDTH)
