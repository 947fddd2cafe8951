"""Reading embedding files of ComfyUI, A1111, diffusers, kohya, CoRe, ViCo and Textual Inversion."""
from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..foreign.text import short, shown_name
from ..weight_files import check_numbers, damaged, read_weights
from .vectors import WordVectors

KIND = "embedding file"
STANDARD_WIDTHS = {"clip_l": 768, "clip_h": 1024, "clip_g": 1280}
# ComfyUI's names of text encoders, under which it looks for their vectors in a file.
ENCODERS = frozenset({*STANDARD_WIDTHS, "t5xxl", "umt5xxl", "qwen3_06b", "qwen3_4b", "qwen3_8b", "qwen25_7b",
                      "qwen3vl_4b", "qwen3vl_8b", "gemma2_2b", "gemma3_4b", "gemma3_12b", "mistral3_24b"})
_OTHER_NAMES = {"t5": "t5xxl"}  # OneTrainer's
_BUNDLED = re.compile(r"bundle_emb\.(.+?)\.(string_to_param\.\*|[^.]+)")
_SAID_BY_A1111 = ("name", "step", "sd_checkpoint_name")
_NUMBERED = re.compile(r"(.+?)_v?(\d{1,6})")
MOST_VECTORS = 1_000  # of a word; a prompt's chunk has room for 75
OF_LAYERS = ".layers"  # ends the name of what holds (layers, n, d) beside their mean, which other programs read


def read_embedding(path: Path, widths: Mapping[str, int] = STANDARD_WIDTHS) -> tuple[WordVectors, dict[str, str]]:
    """Vectors of the one word in `path`, by encoder key, (n, d) float32 on the CPU, or with an axis of layers; and what
    the file says of itself.

    widths: encoder key → d, tells which encoder a tensor without an encoder's name is for.
    metadata: a safetensors file's own; "token" is the word the file was trained with, where it names one.
    Raises ValueError with one sentence if the file cannot be read safely, does not hold exactly one word, or holds a
    vector that is not finite or zero for every encoder.
    """
    content, metadata = read_weights(path, KIND)
    entries, said = _entries(content, path)
    vectors = vectors_by_encoder(entries, widths, path)
    if len({len(rows) for rows in vectors.values()}) > 1:
        counts = ", ".join(f"{len(rows)} for {key}" for key, rows in vectors.items())
        raise ValueError(f"{shown_name(path.name)} has different numbers of vectors per text encoder ({counts}); "
                         "export it again.")
    silent = ~torch.stack([rows.any(-1) for rows in vectors.values()]).any(0)
    if silent.any():
        first = 1 + int(silent.int().argmax())
        raise ValueError(f"Vector {first} of {shown_name(path.name)} is zero, which says nothing in a prompt; use "
                         "another file, or train the word again.")
    return _of_layers(content, vectors, path) or WordVectors(vectors), {**said, **metadata}


def _of_layers(content: Any, means: Mapping[str, Tensor], path: Path) -> WordVectors | None:
    """The vectors of each layer, whose `means` a file holds as well; None if it holds none."""
    named = content if isinstance(content, Mapping) else {}
    entries = {key: rows for key in means if isinstance(rows := named.get(f"{key}{OF_LAYERS}"), Tensor)}
    if not entries:
        return None
    check_numbers(path, [(f"{key}{OF_LAYERS}", rows) for key, rows in entries.items()])
    fit = all(rows.ndim == 3 and rows.shape[1:] == means[key].shape for key, rows in entries.items())
    if not fit or entries.keys() != means.keys() or len({len(rows) for rows in entries.values()}) > 1:
        raise damaged(path, KIND)
    return WordVectors({key: entries[key].to(torch.float32, copy=True) for key in means}, "layer")


def _entries(content: Any, path: Path) -> tuple[list[tuple[str, Tensor]], dict[str, str]]:
    """(name, tensor) pairs of every known layout, and what a pickled file says of itself."""
    if isinstance(content, list) and all(isinstance(part, Mapping) for part in content):
        return [pair for part in content for pair in _tensors(part)], {}
    if not isinstance(content, Mapping):
        raise damaged(path, KIND)
    if "string_to_param" in content:
        said = {key: str(content[key]) for key in _SAID_BY_A1111 if isinstance(content.get(key), (str, int))}
        if not isinstance(content["string_to_param"], Mapping):
            raise damaged(path, KIND)
        return _tensors(content["string_to_param"]), said
    bundled = [(match[1], match[2], tensor) for name, tensor in _tensors(content)
               if (match := _BUNDLED.fullmatch(name))]
    if not bundled:
        return _tensors(content), {}
    words = list(dict.fromkeys(word for word, _, _ in bundled))
    if len(words) > 1:
        raise _several(path, words)
    return [(words[0] if key.startswith("string_to_param") else key, tensor) for _, key, tensor in bundled], {
        "token": words[0]}


def _tensors(content: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    return [(str(name), value) for name, value in content.items() if isinstance(value, Tensor) and value.ndim in (1, 2)]


def vectors_by_encoder(entries: list[tuple[str, Tensor]], widths: Mapping[str, int], path: Path) -> dict[str, Tensor]:
    """(n, d) float32 on the CPU by encoder key, of the (name, tensor) pairs of one word, as `read_embedding`."""
    entries = [(_OTHER_NAMES.get(name, name), tensor) for name, tensor in entries]
    known = {*ENCODERS, *widths}
    named = {name for name, _ in entries if name in known}
    groups: dict[str, list[tuple[str, Tensor]]] = {}
    for name, tensor in entries:
        key = name if name in known else next((k for k, width in widths.items() if width == tensor.shape[-1]), None)
        if key and (name in named or key not in named):
            groups.setdefault(key, []).append((name, tensor if tensor.ndim == 2 else tensor[None]))
    if not groups:
        raise ValueError(f"{shown_name(path.name)} holds no embedding for a text encoder: found {_found(entries)}, "
                         f"expected vectors of width {_or(widths.values())}.")
    for parts in groups.values():
        count = sum(len(rows) for _, rows in parts)
        if count > MOST_VECTORS:
            raise ValueError(f"{shown_name(path.name)} holds {count} vectors, more than the {MOST_VECTORS} of any "
                             "word; choose an embedding file.")
        check_numbers(path, parts)
    return {key: _joined(parts, path).to(torch.float32, copy=True) for key, parts in groups.items()}


def _joined(parts: list[tuple[str, Tensor]], path: Path) -> Tensor:
    """Several tensors of one word in order: word_v0, word_v1, … (CoRe) or word, word_1, … (diffusers)."""
    numbered = []
    for name, rows in parts:
        match = _NUMBERED.fullmatch(name)
        numbered.append((match[1], int(match[2]), rows) if match else (name, 0, rows))
    words = list(dict.fromkeys(word for word, _, _ in numbered))
    if len(words) > 1:
        raise _several(path, words)
    return torch.cat([rows for _, _, rows in sorted(numbered, key=lambda part: part[1])])


def _several(path: Path, words: list[str]) -> ValueError:
    shown = ", ".join(map(short, words[:4])) + (", …" if len(words) > 4 else "")
    return ValueError(f"{shown_name(path.name)} holds several words or is no embedding file (found {shown}); save the "
                      "one you want into a file of its own.")


def _found(entries: list[tuple[str, Tensor]]) -> str:
    shown = [f"{short(name)} {tuple(tensor.shape)}" for name, tensor in entries[:3]]
    return ", ".join(shown) + (f" and {len(entries) - 3} more" if len(entries) > 3 else "") or "no tensor"


def _or(values) -> str:
    texts = [str(value) for value in values]
    return " or ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))
