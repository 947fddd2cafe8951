"""Small IP-Adapter files in the official layouts, and pictures for them."""
from __future__ import annotations

import torch
from safetensors.torch import save_file

from tiny import ip_adapter, vision

from .ip_adapter_by_hand import SD15, TINY_SDXL, blocks_in_file_order

TABLES = {"sd15": SD15, "sdxl": TINY_SDXL}
PROMPT = "a dog on the beach"


def text_width(model) -> int:
    """Of the text encodings that a MODEL attends to."""
    return model.model.model_config.unet_config["context_dim"]


def official(model, table, kind: str, seed: int = 0):
    """Content of a file for this model."""
    unet = model.get_model_object("diffusion_model")
    channels = [block.attn2.to_q.weight.shape[0] for _, _, block in blocks_in_file_order(unet, table)]
    seen = vision.PROJECTED if kind == "base" else vision.WIDTH
    return ip_adapter.state_dict(kind, seen, text_width(model), channels, seed)


def saved(content, path):
    """`path`, which holds the content: pickled if it ends with .bin, else safetensors."""
    if path.suffix == ".bin":
        torch.save(content, path)
    else:
        save_file(ip_adapter.flat(content), path)
    return path


def picture(height=70, width=90, channels=3, seed=0):
    """An IMAGE of one noisy picture."""
    return torch.rand(1, height, width, channels, generator=torch.Generator().manual_seed(seed))
