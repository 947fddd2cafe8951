"""A random checkpoint of SD1.5's topology that fits a small machine: the real text encoder, a U-Net of one width."""
from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

CHANNELS = 320
LEVELS = 4
CONTEXT = 768
TEXT = {"hidden_size": CONTEXT, "intermediate_size": 4 * CONTEXT, "num_hidden_layers": 12, "num_attention_heads": 12}
# Weights that write into a residual stream: damped, or a random network drowns its input.
RESIDUAL_OUTPUTS = ("out_layers.3.weight", "proj_out.weight", "to_out.0.weight", "ff.net.2.weight", "out_proj.weight",
                    "mlp.fc2.weight")


@torch.inference_mode()
def load(seed: int = 0, widths: tuple[int, ...] = (1,) * LEVELS, dtype: torch.dtype = torch.half):
    """(MODEL, CLIP), loaded and detected by ComfyUI as it loads an SD1.5 checkpoint with weights of `dtype`.

    16 cross-attention layers of 320 channels in place of 320, 640 and 1280; CLIP-L with 12 layers of 768.
    widths: multiples of 320 channels for each level; (1, 2, 4, 4) is SD1.5 itself.
    """
    import comfy.sd

    model, clip, *_ = comfy.sd.load_state_dict_guess_config(_state_dict(seed, widths, dtype), output_vae=False)
    return model, clip


@torch.inference_mode()
def load_file(path: Path):
    """As `load`, saved to `path` first: what reloads a model for itself needs its file."""
    import comfy.sd

    save_file(_state_dict(0, (1,) * LEVELS, torch.half), path)
    model, clip, *_ = comfy.sd.load_checkpoint_guess_config(str(path), output_vae=False)
    return model, clip


def _state_dict(seed: int, widths: tuple[int, ...], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    modules = (("model.diffusion_model.", _unet(widths)), ("cond_stage_model.transformer.", _text_model()))
    return {prefix + name: _fill(name, tensor, generator).to(dtype)
            for prefix, module in modules for name, tensor in module.state_dict().items()}


def _unet(widths: tuple[int, ...]) -> nn.Module:
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return UNetModel(image_size=32, in_channels=4, out_channels=4, model_channels=CHANNELS, num_res_blocks=[2] * LEVELS,
                     channel_mult=widths, num_heads=8, use_spatial_transformer=True, context_dim=CONTEXT,
                     transformer_depth=[1] * 6 + [0] * 2, transformer_depth_middle=1,
                     transformer_depth_output=[1] * 9 + [0] * 3, operations=comfy.ops.manual_cast)


def _text_model() -> nn.Module:
    from comfy.sd1_clip import SDClipModel

    transformer = SDClipModel(dtype=torch.float32).transformer
    del transformer.text_projection  # SD1.5's checkpoints have none
    return transformer


def _fill(name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(tensor.shape, generator=generator)
    if "embedding.weight" in name:
        return 0.02 * noise
    if tensor.ndim == 1:
        return 1 + 0.1 * noise if name.endswith("weight") else 0.02 * noise
    gain = 0.3 if name.endswith(RESIDUAL_OUTPUTS) else 1.0
    return noise * gain / tensor[0].numel() ** 0.5
