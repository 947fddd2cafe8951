"""Random checkpoints: ComfyUI's own modules are built, filled from a seed, and saved under ComfyUI's key names.

`sd15`, `sd21` (v-prediction), `sdxl`, `sdxl_zsnr` (v-prediction, zero terminal SNR), `z_image` and `lumina2` (flow)
need the classes of `models.py`.
`sd15_stock` is detected and loaded as SD1.5 by an unmodified ComfyUI (about 275 MiB).
"""
from __future__ import annotations

import hashlib
import os
from pathlib import Path

import safetensors.torch
import torch

from . import models
from .text_encoders import sentence_pieces

TRANSFORMERS = {"z_image": models.TinyZImage, "lumina2": models.TinyLumina2}
KINDS = ("sd15", "sd21", "sdxl", "sdxl_zsnr", *TRANSFORMERS, "sd15_stock")
# Weights that write into a residual stream: damped, or a random network drowns its input.
RESIDUAL_OUTPUTS = ("out_layers.3.weight", "proj_out.weight", "to_out.0.weight", "ff.net.2.weight", "conv.4.weight")
TEXT_RESIDUAL_OUTPUTS = ("out_proj.weight", "mlp.fc2.weight", "o_proj.weight", "down_proj.weight")


def cached(kind: str, folder: Path) -> Path:
    """Path of the checkpoint of this kind in `folder`, made there if this version of it does not exist yet."""
    sources = b"".join((Path(__file__).parent / name).read_bytes() for name in ("checkpoints.py", "models.py"))
    path = folder / f"{kind}-{hashlib.sha256(sources).hexdigest()[:12]}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        safetensors.torch.save_file(state_dict(kind), unfinished)
        os.replace(unfinished, path)
    return path


def state_dict(kind: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """All weights of a checkpoint of this kind, fp16."""
    if kind not in KINDS:
        raise ValueError(f"unknown checkpoint kind {kind!r}, choose one of {KINDS}")
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for prefix, module in (("model.diffusion_model.", _unet(kind)), ("cond_stage_model.", _text(kind)),
                           ("first_stage_model.", _autoencoder(kind))):
        for name, tensor in module.state_dict().items():
            weights[prefix + name] = _fill(name, tensor, generator).half()
    if kind == "sd21":
        v_prediction_mark = weights["model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"]
        v_prediction_mark.copy_(0.2 * torch.randn(v_prediction_mark.shape, generator=generator))
    if kind == "sdxl_zsnr":
        weights |= {"v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)}
    if kind == "sd15_stock":
        _skip_text_layers(weights, first=2)
    if kind == "lumina2":
        weights["cond_stage_model.spiece_model"] = sentence_pieces()
    return weights


def _unet(kind: str) -> torch.nn.Module:
    import comfy.ops
    from comfy.ldm.lumina.model import NextDiT
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    if kind in TRANSFORMERS:
        sizes = {**TRANSFORMERS[kind].unet_config, **TRANSFORMERS[kind].unet_extra_config}
        return NextDiT(**sizes, patch_size=2, in_channels=16, n_layers=2, qk_norm=True,
                       operations=comfy.ops.manual_cast)
    config = {"image_size": 32, "in_channels": 4, "out_channels": 4, "use_spatial_transformer": True,
              "model_channels": models.UNET_CHANNELS, "num_res_blocks": [2, 2, 2, 2], "channel_mult": (1, 1, 2, 2),
              "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
              "transformer_depth_output": [1] * 9 + [0] * 3, "num_heads": 8, "operations": comfy.ops.manual_cast}
    if kind == "sd15":
        config |= {"context_dim": models.WIDTH_L}
    elif kind == "sd21":
        config |= {"context_dim": models.WIDTH_H, "use_linear_in_transformer": True}
    elif kind == "sd15_stock":
        config |= {"context_dim": 768, "model_channels": 320, "num_res_blocks": [1], "channel_mult": (1,),
                   "transformer_depth": [1], "transformer_depth_middle": -2, "transformer_depth_output": [1, 1]}
    else:
        config |= {"context_dim": models.WIDTH_L + models.WIDTH_G, "use_linear_in_transformer": True,
                   "num_res_blocks": [2, 2, 2], "channel_mult": (1, 2, 4), "transformer_depth": [0, 0, 1, 1, 2, 2],
                   "transformer_depth_middle": 2, "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
                   "num_classes": "sequential", "adm_in_channels": models.TinySDXL.unet_config["adm_in_channels"]}
    return UNetModel(**config)


def _text(kind: str) -> torch.nn.Module:
    if kind == "sd15_stock":
        from comfy.sd1_clip import SDClipModel

        holder = torch.nn.Module()
        holder.transformer = SDClipModel(dtype=torch.float32).transformer
        del holder.transformer.text_projection
        return holder
    family = {"sd15": models.TinySD15Clip, "sd21": models.TinySD2Clip, "z_image": models.TinyZImageClip,
              "lumina2": models.TinyLumina2Clip}.get(kind, models.TinySDXLClip)
    return family(dtype=torch.float32)


def _autoencoder(kind: str) -> torch.nn.Module:
    from comfy.taesd.taesd import TAESD

    autoencoder = TAESD(latent_channels=16 if kind in TRANSFORMERS else 4)
    scale = 0.3611 if kind in TRANSFORMERS else 0.13025 if kind.startswith("sdxl") else 0.18215
    autoencoder.vae_scale.data.fill_(scale)
    return autoencoder


def _fill(name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if tensor.ndim == 0:
        return tensor
    noise = torch.randn(tensor.shape, generator=generator)
    if "embedding.weight" in name:
        return 0.02 * noise
    if tensor.ndim == 1:
        return 1 + 0.1 * noise if name.endswith("weight") else 0.02 * noise
    gain = 0.5 if name.endswith(RESIDUAL_OUTPUTS) else 0.1 if name.endswith(TEXT_RESIDUAL_OUTPUTS) else 1.0
    return noise * gain / tensor[0].numel() ** 0.5


def _skip_text_layers(weights: dict[str, torch.Tensor], first: int) -> None:
    """Make the text layers from `first` on the identity: they must exist to be loaded, but need not mix noise."""
    for name, tensor in weights.items():
        layer = name.partition(".encoder.layers.")[2].partition(".")[0]
        if layer and int(layer) >= first and (".out_proj." in name or ".fc2." in name):
            tensor.zero_()
