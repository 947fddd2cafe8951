"""Files of contextualizers in models/contextualizers."""
from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import folder_paths
import torch
from torch import Tensor

from ...files import write_safetensors
from ...foreign.text import parse_json, shown_name
from ...model_files import register_folder
from ...run_files import output_folder
from ...text.vectors import WordVectors
from ...training.run_records import read_state
from ...weight_files import check_numbers, damaged, read_metadata, read_weights
from .contextualizer import ContextNetwork, Contextualizer, Sizes

FOLDER = "contextualizers"
KIND = "contextualizer file"
FORMAT = "contextualizer"  # value of the metadata key "format"
_NETWORK, _MASK, _VOCABULARY = "network.", "mask.", "vocabulary"
MOST_WORDS, WIDEST = 200_000, 65_536


def write_contextualizer(path: Path, contextualizer: Contextualizer) -> Path:
    """Writes the file whole or not at all. Raises NotWritten."""
    tensors = {_NETWORK + name: weight for name, weight in contextualizer.weights.items()}
    tensors |= {_MASK + key: rows for key, rows in contextualizer.mask.items()}
    metadata = {"format": FORMAT, "encoder": contextualizer.encoder, "made_of": contextualizer.made_of,
                "sizes": json.dumps(dataclasses.asdict(contextualizer.sizes)),
                "figures": json.dumps(dict(contextualizer.figures))}
    return write_safetensors(path, {**tensors, _VOCABULARY: contextualizer.vocabulary}, metadata)


def read_contextualizer(path: Path) -> Contextualizer:
    """What a file holds. Raises ValueError with one sentence if it cannot be read, or holds no whole contextualizer."""
    content, metadata = read_weights(path, KIND)
    if metadata.get("format") != FORMAT or not isinstance(content, Mapping):
        raise ValueError(f"{shown_name(path.name)} is no contextualizer; choose a file that Train Contextualizer has "
                         f"saved in models/{FOLDER}.")
    weights, mask = _under(_NETWORK, content), _under(_MASK, content)
    vocabulary, sizes = content.get(_VOCABULARY), _sizes(path, metadata)
    check_numbers(path, [*weights.items(), *mask.items()])
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in ContextNetwork(sizes).state_dict().items()}
    is_whole = (shapes == {name: weight.shape for name, weight in weights.items()} and vocabulary is not None
                and vocabulary.dtype == torch.int64 and vocabulary.shape == (sizes.words,)
                and mask and all(rows.ndim == 2 and len(rows) == 1 for rows in mask.values()))
    if not is_whole:
        raise damaged(path, KIND)
    return Contextualizer(path.stem, metadata.get("encoder", ""), sizes, weights, vocabulary, WordVectors(mask),
                          _figures(metadata), metadata.get("made_of", ""))


def begun_path(name: str, made_of: str) -> Path:
    """Where the state of a training that has not come to its end is kept: one for all that the training depends on."""
    return output_folder(FOLDER) / f"{name}-{made_of[:8]}.safetensors"


def write_begun(path: Path, made_of: str, step: int, state: Mapping[str, Tensor]) -> Path:
    """Keeps the state after that step. Raises NotWritten."""
    return write_safetensors(path, state, {"fingerprint": made_of, "step": str(step), "history": "[]"})


def read_begun(path: Path, made_of: str, most: int) -> tuple[dict[str, Tensor], int]:
    """The state of a training and its step. Raises ValueError if it is damaged, of another training, or of more steps
    than `most`."""
    found = read_state(path, made_of, most)
    if found is None:
        raise damaged(path, "state of this training")
    return found[:2]


def find_contextualizer(encoder: str) -> Path | None:
    """The newest file that was trained on the text encoder of this fingerprint."""
    found = []
    for name in folder_paths.get_filename_list(FOLDER):
        path = Path(folder_paths.get_full_path(FOLDER, name) or "")
        try:
            if read_metadata(path, KIND).get("encoder") == encoder:
                found.append(path)
        except ValueError:
            continue
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _sizes(path: Path, metadata: Mapping[str, str]) -> Sizes:
    try:
        sizes = Sizes(**{name: int(value) for name, value in parse_json(metadata["sizes"].encode()).items()})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(path, KIND) from error
    is_possible = (min(dataclasses.astuple(sizes)) >= 1 and sizes.words <= MOST_WORDS
                   and max(sizes.text, sizes.width) <= WIDEST and sizes.width % sizes.heads == 0)
    if not is_possible:
        raise damaged(path, KIND)
    return sizes


def _figures(metadata: Mapping[str, str]) -> dict[str, float]:
    try:
        return {str(name): float(value) for name, value in parse_json(metadata.get("figures", "{}").encode()).items()}
    except (TypeError, ValueError, AttributeError):
        return {}


def _under(prefix: str, content: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in content.items() if name.startswith(prefix)}


register_folder(FOLDER, (".safetensors",))
