"""The text encoders inside a ComfyUI CLIP, and how their outputs make up the conditioning."""
from __future__ import annotations

import functools
from collections.abc import Sequence

import comfy.text_encoders.llama
import comfy.text_encoders.t5
from comfy.sd1_clip import SDTokenizer

from .encoder_kinds import ClipEncoder, LanguageModel, T5Encoder, TextEncoder, TrimmedLanguageModel

_USE = "use a checkpoint of SD1.x, SD2.x, SDXL, SD3, PixArt, Flux, Chroma, Qwen-Image, Krea 2, Z-Image or Lumina 2."
# What ComfyUI's classes make of their encoders' rows: all of the only one's, or those after the template's first part.
_WHOLE = ("SD1ClipModel", "Flux2TEModel")
_TRIMMED = ("QwenImageTEModel", "Krea2TEModel")


def text_encoders(clip) -> tuple[TextEncoder, ...]:
    """The encoders of `clip` in the order of its tokenizer.

    Raises ValueError if there is none, or if it is not known which of their rows make up the conditioning.
    """
    if clip is None:
        raise ValueError("The CLIP is missing: the checkpoint holds no text encoder; load one with Load CLIP.")
    found = tuple(_encoder(clip, attribute, tokenizer) for attribute, tokenizer in vars(clip.tokenizer).items()
                  if isinstance(tokenizer, SDTokenizer) and _model_of(clip, attribute) is not None)
    if not found:
        raise ValueError(f"This CLIP has no text encoder; {_USE}")
    in_sequence(clip, found)
    return found


def in_sequence(clip, encoders: Sequence[TextEncoder]) -> tuple[TextEncoder, ...]:
    """Those whose rows follow each other in the conditioning; of some that stand side by side the first one.

    Raises ValueError if that is not known.
    """
    of_clip = tuple(each for each in encoders if isinstance(each, ClipEncoder))
    others = tuple(each for each in encoders if not isinstance(each, ClipEncoder))
    kind = _arrangement(clip)
    if not others:
        return of_clip[:1]
    if kind in (*_WHOLE, *_TRIMMED) and len(encoders) == 1 or kind == "FluxClipModel":
        return others
    if kind == "SD3ClipModel":
        return (*of_clip[:1], *others)
    raise ValueError(f"Where words are in what this CLIP ({type(clip.cond_stage_model).__name__}) makes of a prompt is "
                     f"not known; {_USE}")


def _encoder(clip, attribute: str, tokenizer: SDTokenizer) -> TextEncoder:
    transformer = getattr(_model_of(clip, attribute), "transformer", None)
    kind = _kind(clip, transformer)
    if transformer is None or kind is None:
        raise ValueError(f"This CLIP holds the text encoder '{attribute}', which is neither CLIP, T5 nor a language "
                         f"model; {_USE}")
    table = transformer.get_input_embeddings().weight
    return kind(tokenizer.embedding_key, attribute, attribute.removeprefix("clip_"), table.shape[1], tokenizer, table,
                clip.tokenizer)


def _model_of(clip, attribute: str):
    """The model beside a tokenizer: None where it was not loaded, 0 where there is none. A single encoder may be called
    "clip_t5xxl" on ComfyUI's tokenizer and "t5xxl" on its model."""
    models = clip.cond_stage_model
    return getattr(models, attribute, getattr(models, attribute.removeprefix("clip_"), 0))


def _kind(clip, transformer) -> type[TextEncoder] | None:
    if hasattr(transformer, "text_model"):
        return ClipEncoder
    if isinstance(transformer, comfy.text_encoders.t5.T5):
        return T5Encoder
    if isinstance(transformer, comfy.text_encoders.llama.BaseLlama):
        return TrimmedLanguageModel if _arrangement(clip) in _TRIMMED else LanguageModel
    return None


def _arrangement(clip) -> str:
    """Name of ComfyUI's class that puts the encoders' rows together."""
    kinds = type(clip.cond_stage_model).__mro__
    return next((kind.__name__ for kind in kinds if "encode_token_weights" in vars(kind)), "")


@functools.lru_cache(maxsize=1)
def clip_vocabulary() -> frozenset[str]:
    """Byte-pair tokens that every CLIP text encoder shares, as ComfyUI ships them."""
    return frozenset(SDTokenizer().tokenizer.get_vocab())
