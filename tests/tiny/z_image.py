"""Z-Image with few, narrow layers and random weights: ComfyUI's own denoiser and text encoder."""
from __future__ import annotations

import torch

from .text_encoders import WIDTH, z_image

# 256 is the least width: the modulation is min(width, 256) wide and the time embedding always 256.
SIZES = {"image_model": "lumina2", "dim": 256, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 8, "n_kv_heads": 8,
         "axes_dims": [8, 12, 12], "axes_lens": [64, 64, 64], "rope_theta": 256.0, "multiple_of": 32, "patch_size": 2,
         "ffn_dim_multiplier": 1.0, "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32,
         "in_channels": 16, "cap_feat_dim": WIDTH, "qk_norm": True}


def checkpoint():
    """(MODEL, CLIP)."""
    from comfy.model_patcher import ModelPatcher
    from comfy.supported_models import ZImage

    config = ZImage(SIZES)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "").eval().requires_grad_(False)
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.diffusion_model.named_parameters():
            noise = torch.randn(weight.shape, generator=source)
            if weight.ndim < 2:
                weight.copy_(1 + 0.1 * noise if name.endswith("weight") else 0.1 * noise)
            else:
                weight.copy_(noise * 0.5 / weight.shape[1] ** 0.5)
    cpu = torch.device("cpu")
    return ModelPatcher(model, cpu, cpu), z_image()
