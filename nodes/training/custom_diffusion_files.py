"""What others have trained by Custom Diffusion: files of its authors' scripts and of diffusers."""
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from comfy.utils import unet_to_diffusers
from torch import Tensor

from ..families.find import unet_of
from ..families.quantised import is_quantised
from ..foreign.text import short, shown_name
from ..text.concept import Concept, check_placeholder
from ..text.embedding_formats import STANDARD_WIDTHS, read_embedding, vectors_by_encoder
from ..text.encoders import text_encoders
from ..weight_files import check_numbers, damaged, read_weights
from .description import original_weight

KIND = "Custom Diffusion file"
_OF_SCRIPTS, _OF_COMPVIS = "unet", "state_dict"  # keys that tell the authors' layouts
_IN_COMPVIS, _IN_MODEL = "model.diffusion_model.", "diffusion_model."
_OF_PROCESSOR = re.compile(r"(.+)\.processor\.(to_[kvq]|to_out)_custom_diffusion(\.0)?\.(weight|bias)")
_WORD_FILE = re.compile(r"<[^<>]+>\.(?:bin|pt|safetensors)")
_TEXT_ENCODERS = {"text_encoder": ("clip_l", "clip_h"), "text_encoder_2": ("clip_g",)}


@dataclass(frozen=True, eq=False)
class Delta:
    """What a file holds.

    name: of the file, for messages. weights: name in diffusers, or in ComfyUI behind "diffusion_model." → the weight
    itself. products: the same names → (u, v), whose product is the difference to the base. words: word → (encoder key
    or "" where only its width tells, rows). text_encoders: key of `_TEXT_ENCODERS` → weights by their names there.
    """

    name: str
    weights: Mapping[str, Tensor]
    products: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    words: Mapping[str, Sequence[tuple[str, Tensor]]] = field(default_factory=dict)
    text_encoders: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)


def read_delta(path: Path) -> Delta:
    """A file in one of four layouts: the authors' scripts for diffusers (delta.bin) and for CompVis
    (delta_epoch=….ckpt), either of them compressed, and diffusers' own (pytorch_custom_diffusion_weights), with the
    files of its words, <new1>.bin, beside it.

    Raises ValueError with one sentence if it cannot be read safely or is no such file.
    """
    content, _ = read_weights(path, KIND)
    if not isinstance(content, Mapping):
        raise damaged(path, KIND)
    if isinstance(content.get(_OF_SCRIPTS), Mapping):
        found = _of_scripts(path, content)
    elif isinstance(content.get(_OF_COMPVIS), Mapping):
        found = _of_compvis(path, content[_OF_COMPVIS])
    else:
        found = _of_diffusers(path, content)
    if not found.weights and not found.products:
        shown = ", ".join(short(str(name)) for name in list(content)[:3]) or "nothing"
        raise ValueError(f"{shown_name(path.name)} is no {KIND}: found {shown}, expected unet, state_dict or "
                         "…attn2.processor.to_k_custom_diffusion.weight; choose delta.bin, delta_epoch=….ckpt or "
                         "pytorch_custom_diffusion_weights.")
    check_numbers(path, [*found.weights.items(), *((name, part) for name, pair in found.products.items()
                                                   for part in pair)])
    return found


def word_files(path: Path) -> list[Path]:
    """Files of words that diffusers' script saves beside the weights, in the order of their names."""
    return sorted(each for each in path.parent.iterdir() if _WORD_FILE.fullmatch(each.name))


def differences(delta: Delta, model, clip=None) -> dict[str, Tensor]:
    """A LoRA file's tensors: `<layer>.diff` and `.diff_b`, float32, what the file's weights are beyond the MODEL's own,
    and beyond the CLIP's where it holds a text encoder and a CLIP is given.

    Raises ValueError if the MODEL or CLIP lacks a weight, or has another shape or quantised numbers.
    """
    unet_of(model)
    ours = unet_to_diffusers(model.model.model_config.unet_config)
    base, found = _Base(delta.name, model, "MODEL"), {}
    for name, weight in delta.weights.items():
        found |= base.difference(_ours(name, ours), name, weight)
    for name, (u, v) in delta.products.items():
        found |= base.sum(_ours(name, ours), name, u.float() @ v.float())
    if clip is not None:
        for part, weights in delta.text_encoders.items():
            found |= _of_text_encoder(delta.name, clip, part, weights)
    return found


def concepts(delta: Delta, path: Path, clip, names: Sequence[str], class_words: Sequence[str]) -> tuple[Concept, ...]:
    """The file's words. names, class_words: of them in their order, in place of what the file says; may be fewer.

    Raises ValueError if a word cannot be a placeholder or fits no text encoder.
    """
    widths = STANDARD_WIDTHS if clip is None else {each.key: each.width for each in text_encoders(clip)}
    rows: dict[str, Mapping[str, Tensor]] = {
        word: vectors_by_encoder([(key or word, row) for key, row in parts], widths, path)
        for word, parts in delta.words.items()}
    if not rows:
        rows = {file.stem: read_embedding(file, widths)[0] for file in word_files(path)}
    found = []
    for number, (word, vectors) in enumerate(rows.items()):
        placeholder = names[number] if number < len(names) else word
        named = class_words[number] if number < len(class_words) else ""
        check_placeholder(placeholder, named)
        found.append(Concept(placeholder, named, named).with_vectors(vectors, {"loaded_from": delta.name}))
    if len(names) > len(found):
        raise ValueError(f"placeholder names {len(names)} words, but {delta.name} holds {len(found)}; write as many.")
    return tuple(found)


# ------------------------------------------------------------------------------------------------ layouts
def _of_scripts(path: Path, content: Mapping[str, Any]) -> Delta:
    weights, products = _weights(path, content[_OF_SCRIPTS].items())
    words = {}
    for word, value in _mapping(path, content.get("modifier_token", {})).items():
        parts = value if isinstance(value, list) else [value]
        keys = ("clip_l", "clip_g") if len(parts) == 2 else ("",)
        if len(parts) != len(keys) or not all(isinstance(part, Tensor) for part in parts):
            raise damaged(path, KIND)
        words[str(word)] = list(zip(keys, parts))
    texts = {part: {str(name): value for name, value in _mapping(path, content[part]).items()
                    if isinstance(value, Tensor)} for part in _TEXT_ENCODERS if part in content}
    for named in texts.values():
        check_numbers(path, [(name, value) for name, value in named.items() if value.is_floating_point()])
    return Delta(shown_name(path.name), weights, products, words, texts)


def _of_compvis(path: Path, content: Mapping[str, Any]) -> Delta:
    rows = content.get("embed")
    if rows is not None and not (isinstance(rows, Tensor) and rows.ndim in (1, 2)):
        raise damaged(path, KIND)
    words = {} if rows is None else {f"<new{number + 1}>": [("", row)] for number, row in enumerate(
        rows if rows.ndim == 2 else rows[None])}
    weights, products = _weights(path, ((str(name).replace(_IN_COMPVIS, _IN_MODEL, 1), value)
                                        for name, value in content.items() if name != "embed"))
    return Delta(shown_name(path.name), weights, products, words)


def _of_diffusers(path: Path, content: Mapping[str, Any]) -> Delta:
    weights = {}
    for name, value in content.items():
        match = _OF_PROCESSOR.fullmatch(str(name).removeprefix("unet."))
        if match and isinstance(value, Tensor):
            weights[f"{match[1]}.{match[2]}{match[3] or ''}.{match[4]}"] = value
    return Delta(shown_name(path.name), weights)


def _weights(path: Path, items: Iterable[tuple[Any, Any]]
             ) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]:
    whole, products = {}, {}
    for name, value in items:
        if isinstance(value, Tensor):
            whole[str(name)] = value
        elif isinstance(value, Mapping) and isinstance(value.get("u"), Tensor) and isinstance(value.get("v"), Tensor):
            u, v = value["u"], value["v"]
            if u.ndim != 2 or v.ndim != 2 or u.shape[1] != v.shape[0]:
                raise damaged(path, KIND)
            products[str(name)] = u, v
        else:
            raise damaged(path, KIND)
    return whole, {name: pair for name, pair in products.items() if pair[0].numel()}  # rank 0: nothing was learned


def _mapping(path: Path, value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise damaged(path, KIND)
    return value


# ------------------------------------------------------------------------------------------------ beside a base
class _Base:
    """The weights that a file's are compared with. of: "MODEL" or "CLIP", whose patcher it is."""

    def __init__(self, file: str, patcher, of: str):
        self.file, self.patcher, self.of = file, patcher, of
        self.weights = patcher.model.state_dict()

    def difference(self, key: str, name: str, weight: Tensor, prefix: str = "") -> dict[str, Tensor]:
        """{name in a LoRA file: weight minus the base's}. key: in the base. name: in the file, for messages."""
        base = self._of_same_shape(key, name, weight.shape)
        if is_quantised(base):
            raise ValueError(f"{self.file} holds whole weights, but the {self.of}'s are quantised, so that what was "
                             "learned cannot be told from rounding; load an fp16, bf16 or fp32 checkpoint.")
        return {_name(prefix + key): (weight.to(torch.float64) - base.to("cpu", torch.float64)).float()}

    def sum(self, key: str, name: str, difference: Tensor) -> dict[str, Tensor]:
        """The same for what is a difference already."""
        self._of_same_shape(key, name, difference.shape)
        return {_name(key): difference}

    def _of_same_shape(self, key: str, name: str, shape: torch.Size) -> Tensor:
        if key not in self.weights:
            self._refuse(f"there is no {short(name)} in the {self.of}")
        base = original_weight(self.patcher, key, self.weights[key])
        if base.shape != shape:
            self._refuse(f"{short(name)} is {tuple(shape)} where the {self.of}'s is {tuple(base.shape)}")
        return base

    def _refuse(self, why: str) -> NoReturn:
        raise ValueError(f"{self.file} was trained on another base than this {self.of}: {why}; load the checkpoint "
                         "that it was trained on, such as SD1.4 or SD1.5 for most.")


def _ours(name: str, from_diffusers: Mapping[str, str]) -> str:
    """Key in the MODEL of a weight of the file."""
    return name if name.startswith(_IN_MODEL) else _IN_MODEL + from_diffusers.get(name, name)


def _of_text_encoder(file: str, clip, part: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    known = {encoder.key: encoder for encoder in text_encoders(clip)}
    encoder = next((known[key] for key in _TEXT_ENCODERS[part] if key in known), None)
    if encoder is None:
        raise ValueError(f"{file} was trained on another base than this CLIP: it holds a text encoder of CLIP, and "
                         f"this CLIP has {' and '.join(known)}; load the checkpoint that it was trained on.")
    base, found = _Base(file, clip.patcher, "CLIP"), {}
    for name, weight in weights.items():
        if not weight.is_floating_point():
            continue  # positions, which are counted
        key = f"{encoder.attribute}.transformer.{name}"
        if name.endswith("token_embedding.weight") and weight.ndim == 2:
            weight = weight[:len(base.weights.get(key, weight))]  # words of its own stand behind the vocabulary
        found |= {each: value for each, value in base.difference(key, name, weight, "text_encoders.").items()
                  if value.any()}
    return found


def _name(key: str) -> str:
    layer, _, kind = key.rpartition(".")
    return f"{layer}.diff" if kind == "weight" else f"{layer}.diff_b"

