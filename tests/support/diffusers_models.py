"""Models of diffusers and transformers with the weights of ComfyUI's."""
from __future__ import annotations

from typing import TYPE_CHECKING

import comfy.utils
import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

VOCABULARY = 49408
PLACEHOLDER = VOCABULARY  # the scripts append their new token to the table


def unet_like(model, dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
    """diffusers' U-Net of Stable Diffusion 1.x with copies of the weights of a ComfyUI MODEL."""
    from diffusers import UNet2DConditionModel

    config = model.model.model_config.unet_config
    unet = UNet2DConditionModel(
        in_channels=4, out_channels=4, layers_per_block=2, attention_head_dim=8,
        block_out_channels=[config["model_channels"] * multiple for multiple in config["channel_mult"]],
        cross_attention_dim=config["context_dim"],
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3)
    weights, names = model.model.diffusion_model.state_dict(), comfy.utils.unet_to_diffusers(config)
    unet.load_state_dict({name: weights[key].to(dtype, copy=True) for name, key in names.items() if key in weights},
                         assign=True)
    return unet


def text_encoder_like(clip, vectors: Tensor, **sizes) -> CLIPTextModel:
    """transformers' CLIP-L text model with the weights of a ComfyUI CLIP, float32, and behind its vocabulary a token
    for each of the vectors (n, d), the first PLACEHOLDER.

    sizes: as of CLIPTextConfig.
    """
    text = CLIPTextModel(CLIPTextConfig(**{
        "hidden_act": "quick_gelu", "max_position_embeddings": 77, "bos_token_id": 49406, "eos_token_id": 49407,
        **sizes, "vocab_size": VOCABULARY + len(vectors)})).eval()
    weights = {name: weight.detach().float()
               for name, weight in clip.cond_stage_model.clip_l.transformer.text_model.state_dict().items()}
    table = "embeddings.token_embedding.weight"
    weights[table] = torch.cat([weights[table], vectors.detach().float()])
    own = own_names(text)
    text.load_state_dict({own[name]: weight for name, weight in weights.items()}, strict=False)
    assert own.keys() - weights.keys() <= {"embeddings.position_ids"}
    return text


def own_names(text: CLIPTextModel) -> dict[str, str]:
    """ComfyUI's names of the weights → transformers', which differ by its version."""
    return {name.removeprefix("text_model."): name for name in text.state_dict()}
