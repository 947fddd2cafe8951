"""A narrow CLIP Vision of 24 layers: its file, and what makes ComfyUI's loader know it."""
from __future__ import annotations

import json
from pathlib import Path

import torch
from comfy import clip_vision

CONFIG_FILE = Path(__file__).with_name("clip_vision.json")
CONFIG = json.loads(CONFIG_FILE.read_text())
WIDTH, PROJECTED, SIDE = (CONFIG[key] for key in ("hidden_size", "projection_dim", "image_size"))
PATCHES = "vision_model.embeddings.patch_embedding.weight"


def state_dict(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under the names of the transformers library, fp16."""
    generator = torch.Generator().manual_seed(seed)
    model = clip_vision.ClipVisionModel(str(CONFIG_FILE)).model
    return {name: _fill(name, tensor, generator).half() for name, tensor in model.state_dict().items()}


def load(seed: int = 0) -> clip_vision.ClipVisionModel:
    """What Load CLIP Vision gives for a file with these weights."""
    return clip_vision.load_clipvision_from_sd(state_dict(seed))


def register() -> None:
    """Make ComfyUI's detection of CLIP Vision files know the narrow one; harmless when called again."""
    stock = clip_vision.load_clipvision_from_sd
    if getattr(stock, "knows_the_narrow_one", False):
        return

    def load_clipvision_from_sd(sd, *args, **kwargs):
        if PATCHES not in sd or sd[PATCHES].shape[0] != WIDTH:
            return stock(sd, *args, **kwargs)
        model = clip_vision.ClipVisionModel(str(CONFIG_FILE))
        assert model.load_sd(sd) == ([], [])
        return model

    load_clipvision_from_sd.knows_the_narrow_one = True
    clip_vision.load_clipvision_from_sd = load_clipvision_from_sd


def _fill(name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(tensor.shape, generator=generator)
    if "embedding" in name and PATCHES != name:
        return 0.3 * noise
    if tensor.ndim == 1:
        return 1 + 0.1 * noise if name.endswith("weight") else 0.02 * noise
    gain = 0.3 if name.endswith(("out_proj.weight", "fc2.weight")) else 1.0
    return noise * gain / tensor[0].numel() ** 0.5
