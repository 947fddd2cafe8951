"""ComfyUI's text encoders of other families, real classes with few and narrow layers, random and without a denoiser."""
from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from typing import Any

import torch

WIDTH = 32
NARROW = {"hidden_size": WIDTH, "intermediate_size": 32, "num_attention_heads": 1, "num_key_value_heads": 1}
CORPUS = ["a photo of a dog in the snow", "a cat and a boy on the sand", "art of a red hat", "a dog, a cat, a boy, art",
          "(dog:1.3), (boy) (cat) (art)", "teddy bear's hat; snowy hats",
          "a photo-op of \"dog\" \"cat\" \"boy\" \"art\""]


def z_image():
    """Qwen3-4B, last but one layer, chat template."""
    from comfy.text_encoders import z_image

    return _clip(z_image.ZImageTokenizer, z_image.te(), {"qwen3_4b": {**NARROW, "num_hidden_layers": 3}})


def klein():
    """Qwen3-4B, three layers side by side, padded to 512."""
    from comfy.text_encoders import flux

    return _clip(flux.KleinTokenizer, flux.klein_te(), {"qwen3_4b": {**NARROW, "num_hidden_layers": 28}})


def qwen_image():
    """Qwen2.5-VL, without the rows of its template's first part."""
    from comfy.text_encoders import qwen_image, qwen_vl

    small = functools.partial(qwen_vl.Qwen2VLVisionTransformer, intermediate_size=64, num_heads=2, num_layers=1)
    vision, qwen_vl.Qwen2VLVisionTransformer = qwen_vl.Qwen2VLVisionTransformer, lambda **sizes: small(
        **{**sizes, "hidden_size": 64})
    try:
        return _clip(qwen_image.QwenImageTokenizer, qwen_image.te(), {"qwen25_7b": {**NARROW, "num_hidden_layers": 3}})
    finally:
        qwen_vl.Qwen2VLVisionTransformer = vision


def krea2():
    """Qwen3-VL, twelve layers side by side, without the rows of its template's first part."""
    from comfy.text_encoders import krea2, qwen3vl

    vision = qwen3vl.QWEN3VL_VISION
    qwen3vl.QWEN3VL_VISION = {**vision, "qwen3vl_4b": {"hidden_size": 64, "intermediate_size": 64, "depth": 1,
                                                       "deepstack_visual_indexes": [0]}}
    try:
        return _clip(krea2.Krea2Tokenizer, krea2.te(), {"qwen3vl_4b": {**NARROW, "num_hidden_layers": 36}})
    finally:
        qwen3vl.QWEN3VL_VISION = vision


def flux1():
    """T5, and CLIP whose pooled output alone is used."""
    from comfy.text_encoders import flux

    return _clip(flux.FluxTokenizer, flux.flux_clip(), {"t5xxl": T5, "clip_l": CLIP_L})


def pixart():
    """T5 alone, without padding; the tokenizer calls it by another name than the model."""
    from comfy.text_encoders import pixart_t5

    return _clip(pixart_t5.PixArtTokenizer, pixart_t5.pixart_te(), {"t5xxl": T5})


def sd3():
    """CLIP L and G side by side, then T5."""
    from comfy.text_encoders import sd3_clip

    return _clip(sd3_clip.SD3Tokenizer, sd3_clip.sd3_clip(), {
        "t5xxl": {**T5, "d_model": 4096, "d_ff": 32, "vocab_size": 8192}, "clip_l": {**CLIP_L, "hidden_size": 768},
        "clip_g": {**CLIP_L, "hidden_size": 1280}})


def lumina2():
    """Gemma 2 with a SentencePiece vocabulary, no template."""
    from comfy.text_encoders import lumina2

    return _clip(lumina2.LuminaTokenizer, lumina2.te(), {
        "gemma2_2b": {**NARROW, "num_hidden_layers": 3, "vocab_size": 512}}, {"spiece_model": sentence_pieces()})


def flux2():
    """Mistral with a byte-pair vocabulary, padded in front."""
    from comfy.text_encoders import flux

    load, flux.load_mistral_tokenizer = flux.load_mistral_tokenizer, lambda data: {
        "tokenizer_object": byte_pairs(), "legacy": False}
    try:
        return _clip(flux.Flux2Tokenizer, flux.flux2_te(), {
            "mistral3_24b": {**NARROW, "num_hidden_layers": 31, "vocab_size": 1024}})
    finally:
        flux.load_mistral_tokenizer = load


T5 = {"d_model": WIDTH, "d_ff": 96, "d_kv": 32, "num_heads": 2, "num_layers": 2}
CLIP_L = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 2, "num_hidden_layers": 3}
FAMILIES = {made.__name__: made for made in (z_image, klein, qwen_image, krea2, flux1, pixart, sd3, lumina2, flux2)}


def _clip(tokenizer: type, model: type, sizes: Mapping[str, Mapping[str, int]], vocabulary: Mapping[str, Any] = {}):
    """A CLIP as ComfyUI's loaders make it, with random weights."""
    import comfy.sd
    from comfy.supported_models_base import ClipTarget

    options = {f"{name}_model_config": dict(config) for name, config in sizes.items()}
    clip = comfy.sd.CLIP(ClipTarget(tokenizer, model), tokenizer_data=dict(vocabulary), model_options={
        **options, "dtype": torch.float32}, disable_dynamic=True)
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in clip.cond_stage_model.named_parameters():
            noise = torch.randn(weight.shape, generator=source)
            if weight.ndim < 2:
                weight.copy_(1 + 0.1 * noise if name.endswith("weight") else 0.1 * noise)
            else:
                embedding = any(part in name for part in ("embed", "shared"))
                weight.copy_(noise if embedding else noise * 0.5 / weight.shape[1] ** 0.5)
    return clip


@functools.cache
def sentence_pieces() -> torch.Tensor:
    """A small vocabulary of Gemma's kind: pad, end, start and unknown in front."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20), model_writer=model, vocab_size=400, pad_id=0, eos_id=1, bos_id=2, unk_id=3,
        byte_fallback=True, hard_vocab_limit=False, add_dummy_prefix=True, minloglevel=2)
    return torch.frombuffer(bytearray(model.getvalue()), dtype=torch.uint8)


@functools.cache
def byte_pairs():
    """A small vocabulary of Mistral's kind."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]",
               *map("<{}>".format, range(4)), "<pad>"]
    letters = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(CORPUS * 20, trainers.BpeTrainer(
        vocab_size=900, special_tokens=special, initial_alphabet=letters, show_progress=False))
    return made
