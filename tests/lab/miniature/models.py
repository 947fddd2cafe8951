"""The miniature models as ComfyUI knows them: SD1.x, SDXL and Z-Image, narrow, with 16 latent channels.

``register`` adds the classes to ComfyUI's detection; after that the stock *Load Checkpoint* reads the one
safetensors file. The file holds only the token rows that training touched; the class restores the rest by seed.
"""
from __future__ import annotations

import functools

import torch
from comfy import latent_formats, sd1_clip, sdxl_clip, supported_models, supported_models_base
from comfy.text_encoders import z_image

WIDTH = 128
CHANNELS = 64
HEADS = 4
TEXT_LAYERS = 3
VOCABULARY, QWEN_VOCABULARY = 49408, 151936
TABLE_SEED, TABLE_SPREAD = 20, 0.02
ROWS = "token_rows."
MULTIPLIERS = (1, 2, 2)

UNET = {
    "image_size": 16, "in_channels": 16, "out_channels": 16, "model_channels": CHANNELS, "num_res_blocks": [1, 1, 1],
    "channel_mult": MULTIPLIERS, "use_spatial_transformer": True, "transformer_depth": [1, 1, 1],
    "transformer_depth_middle": 1, "transformer_depth_output": [1] * 6, "context_dim": WIDTH, "num_heads": HEADS,
    "num_head_channels": -1, "use_linear_in_transformer": False, "legacy": False,
}
UNET_XL = {
    **UNET, "transformer_depth": [0, 1, 2], "transformer_depth_middle": 1,
    "transformer_depth_output": [0, 0, 1, 1, 2, 2],
    "context_dim": 2 * WIDTH, "use_linear_in_transformer": True, "num_classes": "sequential",
    "adm_in_channels": WIDTH + 6 * 256,
}
TRANSFORMER = {
    "patch_size": 2, "in_channels": 16, "dim": 256, "n_layers": 4, "n_refiner_layers": 1, "n_heads": 4, "n_kv_heads": 4,
    "multiple_of": 64, "ffn_dim_multiplier": 2.0, "norm_eps": 1e-5, "qk_norm": True, "cap_feat_dim": WIDTH,
    "axes_dims": [16, 24, 24], "axes_lens": [128, 64, 64], "rope_theta": 256.0, "z_image_modulation": True,
    "time_scale": 1000.0, "pad_tokens_multiple": 32,
}
QWEN = {"hidden_size": WIDTH, "intermediate_size": 3 * WIDTH, "num_hidden_layers": 4, "num_attention_heads": 2,
        "num_key_value_heads": 1}


def text_config(layers: int = TEXT_LAYERS, activation: str = "quick_gelu") -> dict:
    """A CLIP text transformer in the format of ComfyUI's own json files."""
    return {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": layers,
            "num_attention_heads": HEADS, "hidden_act": activation, "max_position_embeddings": 77,
            "eos_token_id": 49407}


def untouched_table(vocabulary: int = VOCABULARY) -> torch.Tensor:
    """(vocabulary, 128) float32: the token embeddings before training, the same on every machine."""
    generator = torch.Generator().manual_seed(TABLE_SEED)
    return TABLE_SPREAD * torch.randn(vocabulary, WIDTH, generator=generator)


class MiniatureLatent(latent_formats.LatentFormat):
    """Sixteen channels of unit variance; the variance is undone by the autoencoder's own ``vae_scale``."""

    latent_channels = 16


class MiniatureClipL(sd1_clip.SDClipModel):
    """Last layer after the final norm, as in SD1.x."""

    def __init__(self, device="cpu", dtype=None, model_options={}):
        super().__init__(device=device, dtype=dtype, return_projected_pooled=False, model_options=model_options,
                         textmodel_json_config=text_config())


class MiniatureClip(sd1_clip.SD1ClipModel):
    """clip_l alone."""

    def __init__(self, device="cpu", dtype=None, model_options={}):
        super().__init__(device=device, dtype=dtype, model_options=model_options, clip_model=MiniatureClipL)


class MiniatureClipXL(sdxl_clip.SDXLClipModel):
    """clip_l and clip_g, both penultimate layers without the final norm, as in SDXL."""

    def __init__(self, device="cpu", dtype=None, model_options={}):
        torch.nn.Module.__init__(self)
        hidden = {"device": device, "dtype": dtype, "layer": "hidden", "layer_idx": -2,
                  "layer_norm_hidden_state": False}
        self.clip_l = sd1_clip.SDClipModel(**hidden, textmodel_json_config=text_config(),
                                           model_options={**model_options, "model_name": "clip_l"})
        self.clip_g = sd1_clip.SDClipModel(**hidden, textmodel_json_config=text_config(activation="gelu"),
                                           special_tokens={"start": 49406, "end": 49407, "pad": 0},
                                           model_options={**model_options, "model_name": "clip_g"})
        self.dtypes = {dtype}


class MiniatureTokenizer(sd1_clip.SD1Tokenizer):
    """The stock tokenizer, reading embeddings of the miniature's width."""

    def __init__(self, embedding_directory=None, tokenizer_data={}):
        super().__init__(embedding_directory=embedding_directory, tokenizer_data=tokenizer_data,
                         tokenizer=functools.partial(sd1_clip.SDTokenizer, embedding_size=WIDTH))


class MiniatureTokenizerXL(sdxl_clip.SDXLTokenizer):
    """The two stock tokenizers, reading embeddings of the miniature's width."""

    def __init__(self, embedding_directory=None, tokenizer_data={}):
        common = {"embedding_directory": embedding_directory, "tokenizer_data": tokenizer_data, "embedding_size": WIDTH}
        self.clip_l = sd1_clip.SDTokenizer(**common)
        self.clip_g = sd1_clip.SDTokenizer(**common, embedding_key="clip_g", pad_with_end=False)


class MiniatureQwen(z_image.ZImageTEModel):
    """Qwen3-4B: last but one layer, without the final norm."""

    def __init__(self, device="cpu", dtype=None, model_options={}):
        super().__init__(device, dtype, {**model_options, "qwen3_4b_model_config": dict(QWEN)})


class MiniatureTokenizerQwen(z_image.ZImageTokenizer):
    """The stock tokenizer, reading embeddings of the miniature's width."""

    def __init__(self, embedding_directory=None, tokenizer_data={}):
        super().__init__(embedding_directory, tokenizer_data)
        self.qwen3_4b.embedding_size = WIDTH


class _MiniatureModel:
    """What they share: own text encoder keys, token tables restored from the rows in the file, sixteen channels."""

    latent_format = MiniatureLatent
    text_model: type
    tokenizer: type

    def inpaint_model(self):
        return False

    def process_clip_state_dict(self, state_dict: dict) -> dict:
        prefix = "cond_stage_model."
        weights = {key.removeprefix(prefix): state_dict.pop(key) for key in list(state_dict) if key.startswith(prefix)}
        return restore_tables(weights)

    def clip_target(self, state_dict={}):
        return supported_models_base.ClipTarget(self.tokenizer, self.text_model)


class MiniatureSD(_MiniatureModel, supported_models.SD15):
    """SD1.x: eps, one text encoder, 1×1 convolutions around the transformers; ten cross-attention layers."""

    unet_config = {**supported_models.SD15.unet_config, "context_dim": WIDTH, "model_channels": CHANNELS,
                   "in_channels": 16}
    unet_extra_config = {"num_heads": HEADS, "num_head_channels": -1}
    text_model, tokenizer = MiniatureClip, MiniatureTokenizer


class MiniatureSDXL(_MiniatureModel, supported_models.SDXL):
    """SDXL: two text encoders, pooled text and picture size as extra conditioning, transformers two blocks deep."""

    unet_config = {**supported_models.SDXL.unet_config, "context_dim": 2 * WIDTH, "model_channels": CHANNELS,
                   "transformer_depth": UNET_XL["transformer_depth"], "adm_in_channels": UNET_XL["adm_in_channels"]}
    unet_extra_config = {"num_heads": HEADS, "num_head_channels": -1}
    text_model, tokenizer = MiniatureClipXL, MiniatureTokenizerXL


class MiniatureZImage(_MiniatureModel, supported_models.ZImage):
    """Z-Image: flow matching, one sequence of text and picture, a language model's words. Noise levels are not shifted
    towards noise, as pictures this small need not be."""

    unet_config = {"image_model": "lumina2", "dim": TRANSFORMER["dim"], "cap_feat_dim": WIDTH}
    unet_extra_config = dict(TRANSFORMER)
    sampling_settings = {**supported_models.ZImage.sampling_settings, "shift": 1.0}
    vae_key_prefix = ["first_stage_model."]
    text_model, tokenizer = MiniatureQwen, MiniatureTokenizerQwen


CLIP_TABLE = VOCABULARY, "text_model.embeddings.token_embedding.weight"
TABLES = {"clip_l": CLIP_TABLE, "clip_g": CLIP_TABLE, "qwen3_4b": (QWEN_VOCABULARY, "model.embed_tokens.weight")}


def restore_tables(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Replace every ``<encoder>.token_rows.ids/.weight`` by the full table of token embeddings they stand for."""
    for encoder in [key.removesuffix(f".{ROWS}ids") for key in weights if key.endswith(ROWS + "ids")]:
        ids, rows = weights.pop(f"{encoder}.{ROWS}ids"), weights.pop(f"{encoder}.{ROWS}weight")
        vocabulary, place = TABLES[encoder]
        table = untouched_table(vocabulary).to(rows.dtype)
        table[ids.long()] = rows
        weights[f"{encoder}.transformer.{place}"] = table
    return weights


def register() -> None:
    """Make ComfyUI's checkpoint detection know the miniature; harmless when called again."""
    known = {cls.__name__ for cls in supported_models.models}
    own = (MiniatureSD, MiniatureSDXL, MiniatureZImage)
    # the first that fits is taken, and Lumina 2's own class fits every width
    supported_models.models[:0] = [cls for cls in own if cls.__name__ not in known]
