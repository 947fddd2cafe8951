"""Narrow siblings of the Stable Diffusion families, of Lumina 2 and of Z-Image.

Each class differs from ComfyUI's own only in widths and in the number of text layers, so loading, conditioning,
sampling and patching run through the same code as for the full models. The two encoders of the SDXL sibling differ in
width, as the real ones do: code that mixes them up fails.
"""
from __future__ import annotations

import functools

import torch
from comfy import sd1_clip, sdxl_clip, supported_models, supported_models_base, utils
from comfy.text_encoders import lumina2, z_image

WIDTH_L = 32
WIDTH_G = 48
WIDTH_H = 40
UNET_CHANNELS = 32
WIDTH_QWEN, WIDTH_GEMMA = 32, 40


def text_config(width: int, layers: int, activation: str) -> dict:
    """Settings of a CLIP text transformer with two heads, in the format of ComfyUI's own json files."""
    return {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "num_attention_heads": 2,
            "hidden_act": activation, "max_position_embeddings": 77, "eos_token_id": 49407}


ZERO_PADDED = {"start": 49406, "end": 49407, "pad": 0}


class TinyClipL(sd1_clip.SDClipModel):
    """SD1.x's encoder: last layer, after the final norm."""

    def __init__(self, device="cpu", dtype=None, model_options={}):
        super().__init__(device=device, dtype=dtype, return_projected_pooled=False, model_options=model_options,
                         textmodel_json_config=text_config(WIDTH_L, 2, "quick_gelu"))


class TinyClipH(sd1_clip.SDClipModel):
    """SD2.x's encoder: penultimate layer, after the final norm."""

    def __init__(self, device="cpu", dtype=None, model_options={}):
        super().__init__(device=device, dtype=dtype, layer="hidden", layer_idx=-2, special_tokens=dict(ZERO_PADDED),
                         model_options=model_options, textmodel_json_config=text_config(WIDTH_H, 3, "gelu"))


class TinySD15Clip(sd1_clip.SD1ClipModel):
    """clip_l alone."""

    def __init__(self, device="cpu", dtype=None, model_options={}):
        super().__init__(device=device, dtype=dtype, model_options=model_options, clip_model=TinyClipL)


class TinySD2Clip(sd1_clip.SD1ClipModel):
    """clip_h alone."""

    def __init__(self, device="cpu", dtype=None, model_options={}):
        super().__init__(device=device, dtype=dtype, model_options=model_options, clip_name="h", clip_model=TinyClipH)


class TinySDXLClip(sdxl_clip.SDXLClipModel):
    """clip_l and clip_g, both penultimate layers without the final norm."""

    def __init__(self, device="cpu", dtype=None, model_options={}):
        torch.nn.Module.__init__(self)
        hidden = {"device": device, "dtype": dtype, "layer": "hidden", "layer_idx": -2,
                  "layer_norm_hidden_state": False}
        self.clip_l = sd1_clip.SDClipModel(**hidden, textmodel_json_config=text_config(WIDTH_L, 3, "quick_gelu"),
                                           model_options={**model_options, "model_name": "clip_l"})
        self.clip_g = sd1_clip.SDClipModel(**hidden, textmodel_json_config=text_config(WIDTH_G, 4, "gelu"),
                                           special_tokens=dict(ZERO_PADDED),
                                           model_options={**model_options, "model_name": "clip_g"})
        self.dtypes = {dtype}


class TinySD15Tokenizer(sd1_clip.SD1Tokenizer):
    """The stock tokenizer, reading embeddings of the tiny width."""

    def __init__(self, embedding_directory=None, tokenizer_data={}):
        super().__init__(embedding_directory=embedding_directory, tokenizer_data=tokenizer_data,
                         tokenizer=functools.partial(sd1_clip.SDTokenizer, embedding_size=WIDTH_L))


class TinySD2Tokenizer(sd1_clip.SD1Tokenizer):
    """The stock SD2 tokenizer (padded with zeros), reading embeddings of the tiny width."""

    def __init__(self, embedding_directory=None, tokenizer_data={}):
        tokenizer = functools.partial(sd1_clip.SDTokenizer, pad_with_end=False, embedding_size=WIDTH_H,
                                      embedding_key="clip_h")
        super().__init__(embedding_directory=embedding_directory, tokenizer_data=tokenizer_data, clip_name="h",
                         tokenizer=tokenizer)


class TinySDXLTokenizer(sdxl_clip.SDXLTokenizer):
    """The two stock tokenizers, reading embeddings of the tiny widths."""

    def __init__(self, embedding_directory=None, tokenizer_data={}):
        common = {"embedding_directory": embedding_directory, "tokenizer_data": tokenizer_data}
        self.clip_l = sd1_clip.SDTokenizer(**common, embedding_size=WIDTH_L)
        self.clip_g = sd1_clip.SDTokenizer(**common, embedding_size=WIDTH_G, embedding_key="clip_g", pad_with_end=False)


def narrow_language_model(width: int, **more) -> dict:
    """Settings of a language model that ComfyUI takes in place of its own; heads are 128 or 256 wide in any case."""
    return {"hidden_size": width, "intermediate_size": 32, "num_attention_heads": 1, "num_key_value_heads": 1,
            "num_hidden_layers": 3, **more}


class TinyZImageClip(z_image.ZImageTEModel):
    """Qwen3-4B: last but one layer, without the final norm. quantised: what ComfyUI's
    `detect_layer_quantization` says."""

    def __init__(self, device="cpu", dtype=None, model_options={}, quantised=None):
        super().__init__(device, dtype, {**model_options, "quantization_metadata": quantised,
                                         "qwen3_4b_model_config": narrow_language_model(WIDTH_QWEN)})


class TinyLumina2Clip(lumina2.LuminaModel):
    """Gemma 2: last but one layer, with a vocabulary of its own."""

    def __init__(self, device="cpu", dtype=None, model_options={}):
        super().__init__(device, dtype, {
            **model_options, "gemma2_2b_model_config": narrow_language_model(WIDTH_GEMMA, vocab_size=512)})


class TinyZImageTokenizer(z_image.ZImageTokenizer):
    """The stock tokenizer, reading embeddings of the tiny width."""

    def __init__(self, embedding_directory=None, tokenizer_data={}):
        super().__init__(embedding_directory, tokenizer_data)
        self.qwen3_4b.embedding_size = WIDTH_QWEN


class TinyModel:
    """What the siblings share: the text encoder's weights are stored under its own key names."""

    text_model: type
    tokenizer: type

    def process_clip_state_dict(self, state_dict: dict) -> dict:
        prefix = "cond_stage_model."
        return {key.removeprefix(prefix): state_dict.pop(key) for key in list(state_dict) if key.startswith(prefix)}

    def clip_target(self, state_dict={}):
        return supported_models_base.ClipTarget(self.tokenizer, self.text_model)


class TinySD15(TinyModel, supported_models.SD15):
    """SD1.x: eps, eight heads, 1x1 convolutions around the transformers."""

    unet_config = {**supported_models.SD15.unet_config, "context_dim": WIDTH_L, "model_channels": UNET_CHANNELS}
    text_model, tokenizer = TinySD15Clip, TinySD15Tokenizer


class TinySD21(TinyModel, supported_models.SD20):
    """SD2.x: v-prediction (told, as in ComfyUI, by one norm's bias), fixed head width, linear projections."""

    unet_config = {**supported_models.SD20.unet_config, "context_dim": WIDTH_H, "model_channels": UNET_CHANNELS}
    unet_extra_config = {**supported_models.SD20.unet_extra_config, "num_head_channels": 16}
    text_model, tokenizer = TinySD2Clip, TinySD2Tokenizer


class TinySDXL(TinyModel, supported_models.SDXL):
    """SDXL: two encoders, pooled text and picture size as extra conditioning, transformers up to two blocks deep."""

    unet_config = {**supported_models.SDXL.unet_config, "context_dim": WIDTH_L + WIDTH_G,
                   "model_channels": UNET_CHANNELS,
                   "transformer_depth": [0, 0, 1, 1, 2, 2], "adm_in_channels": WIDTH_G + 6 * 256}
    unet_extra_config = {**supported_models.SDXL.unet_extra_config, "num_head_channels": 16}
    text_model, tokenizer = TinySDXLClip, TinySDXLTokenizer


class TinyZImage(TinyModel, supported_models.ZImage):
    """Z-Image: text and picture padded to 32 rows each. No narrower one can be: the time embedding has 256 channels."""

    unet_config = {"image_model": "lumina2", "dim": 256, "cap_feat_dim": WIDTH_QWEN}
    unet_extra_config = {"n_heads": 8, "n_kv_heads": 8, "n_refiner_layers": 1, "axes_dims": [8, 12, 12],
                         "axes_lens": [64, 64, 64], "rope_theta": 256.0, "multiple_of": 32, "ffn_dim_multiplier": 1.0,
                         "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32}
    vae_key_prefix = ["first_stage_model."]
    text_model, tokenizer = TinyZImageClip, TinyZImageTokenizer

    def clip_target(self, state_dict={}):
        quantised = utils.detect_layer_quantization(state_dict, "cond_stage_model.")
        return supported_models_base.ClipTarget(self.tokenizer, functools.partial(self.text_model, quantised=quantised))


class TinyLumina2(TinyModel, supported_models.Lumina2):
    """Lumina 2: three heads of queries share the keys and values of one, no padding."""

    unet_config = {"image_model": "lumina2", "dim": 96, "cap_feat_dim": WIDTH_GEMMA}
    unet_extra_config = {"n_heads": 3, "n_kv_heads": 1, "n_refiner_layers": 1, "axes_dims": [8, 12, 12],
                         "axes_lens": [64, 64, 64], "multiple_of": 32, "ffn_dim_multiplier": 1.0}
    vae_key_prefix = ["first_stage_model."]
    text_model, tokenizer = TinyLumina2Clip, lumina2.LuminaTokenizer


def register() -> None:
    """Make ComfyUI's checkpoint detection know the tiny classes; harmless when called again."""
    known = {cls.__name__ for cls in supported_models.models}
    tiny = (TinySD15, TinySD21, TinySDXL, TinyZImage, TinyLumina2)
    # the first that fits is taken, and Lumina 2's own class fits every width
    supported_models.models[:0] = [cls for cls in tiny if cls.__name__ not in known]
