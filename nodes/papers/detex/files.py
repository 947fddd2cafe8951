"""Files of DETEX's mappers in models/detex, with small pictures of what their words were learned from."""
from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...foreign.text import parse_json, shown_name
from ...model_files import register_folder
from ...text.embedding_files import file_stem
from ...text.vectors import WordVectors
from ...weight_files import check_numbers, damaged, read_metadata, read_weights
from .mapper import AttributeMapper
from .words import ATTRIBUTES, POSE

FOLDER = "detex"
KIND = "DETEX file"
FILE = "attributes"  # file name before the step
FORMAT = "detex"  # value of the metadata key "format"
LONGEST_THUMBNAIL = 160  # pixels
MOST_PICTURES = 1000
_THUMBNAIL = "thumbnail."


@dataclass(frozen=True)
class Words:
    """A subject of a training: its word, its class words, and how many pictures it had."""

    placeholder: str
    class_words: str
    pictures: int


@dataclass(frozen=True, eq=False)
class Detex:
    """What a file holds.

    source: its name, for messages. subjects: of the training. vision: digest of the image encoder. pose_is: the word
    behind those of poses. run, step: of the training. mappers: attribute → encoder key → mapper; none where every
    picture's word was a vector of its own.
    """

    source: str
    subjects: tuple[Words, ...]
    vision: str
    pose_is: str
    run: str
    step: int
    mappers: Mapping[str, Mapping[str, AttributeMapper]]

    def owner(self, number: int) -> tuple[str, int]:
        """Placeholder of the subject that picture `number` (from 1) of the file shows, and the picture's number there.

        Raises ValueError if there are fewer.
        """
        left = number
        for words in self.subjects:
            if 1 <= left <= words.pictures:
                return words.placeholder, left
            left -= words.pictures
        raise ValueError(f"There is no picture {number} in {self.source}, which was learned from "
                         f"{sum(words.pictures for words in self.subjects)}; choose one of them, or 0 for none.")

    def encode(self, features: Tensor) -> dict[str, WordVectors]:
        """Attribute → vectors (1, d) of one picture's features (1, seen).

        Raises ValueError if they are another encoder's, or nothing maps them.
        """
        if not self.mappers:
            raise ValueError(f"{self.source} was trained without mappers, so that it knows no other pictures than its "
                             "own; train with mapper on Train DETEX.")
        seen = next(iter(self.mappers[POSE].values())).seen
        if features.shape[1] != seen:
            raise ValueError(f"{self.source} was trained with an image encoder that gives {seen} numbers, but this "
                             f"clip_vision gives {features.shape[1]}; load the one of the training.")
        with torch.no_grad():
            return {attribute: WordVectors({key: mapper(features) for key, mapper in mappers.items()})
                    for attribute, mappers in self.mappers.items()}

    def embedding(self, word: str) -> str:
        """Name of the stock embedding of a word of the training, of the same step."""
        return f"{self.run}/{file_stem(word, self.step)}"


def metadata_of(subjects: Sequence[tuple[str, str, int]], vision: str, pose_is: str) -> dict[str, str]:
    """What a file says of itself. subjects: (placeholder, class words, number of pictures)."""
    return {"format": FORMAT, "subjects": json.dumps(subjects), "vision": vision, "pose_is": pose_is}


def thumbnails(pictures: Iterable[Tensor]) -> dict[str, Tensor]:
    """Pictures (H, W, 3) in 0…1 as bytes of JPEG files, by name in a file."""
    return {f"{_THUMBNAIL}{number}": _jpeg(picture) for number, picture in enumerate(pictures, 1)}


def read_detex(path: Path) -> Detex:
    """What a file holds. Raises ValueError with one sentence if it cannot be read, or is none of DETEX."""
    content, metadata = read_weights(path, KIND)
    about = _about(path, metadata)
    if not isinstance(content, Mapping):
        raise damaged(path, KIND)
    weights = {name: tensor for name, tensor in content.items() if name.startswith(tuple(f"{a}." for a in ATTRIBUTES))}
    check_numbers(path, weights.items())
    try:
        mappers = _mappers(weights)
    except (RuntimeError, KeyError, IndexError, ValueError) as error:
        raise damaged(path, KIND) from error
    return Detex(*about, mappers)


def read_thumbnails(path: Path) -> list[bytes]:
    """JPEG files of the pictures, in their order. Raises ValueError as `read_detex`."""
    content, metadata = read_weights(path, KIND)
    count = sum(words.pictures for words in _about(path, metadata)[1])
    found = [content.get(f"{_THUMBNAIL}{number}") for number in range(1, count + 1)]
    if any(each is None or each.dtype != torch.uint8 or each.ndim != 1 for each in found):
        raise damaged(path, KIND)
    return [each.numpy().tobytes() for each in found]


def read_about(path: Path) -> Detex:
    """What a file says of itself, without mappers. Raises ValueError as `read_detex`."""
    return Detex(*_about(path, read_metadata(path, KIND)), {})


def _about(path: Path, metadata: Mapping[str, str]) -> tuple[str, tuple[Words, ...], str, str, str, int]:
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{shown_name(path.name)} is no file of DETEX; choose one that Train has saved in "
                         f"models/{FOLDER}.")
    try:
        subjects = tuple(Words(str(word), str(kind), int(count))
                         for word, kind, count in parse_json(metadata["subjects"].encode()))
        run, step = metadata["run"], int(metadata["step"])
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, KIND) from error
    if not subjects or not 1 <= sum(words.pictures for words in subjects) <= MOST_PICTURES or step < 0:
        raise damaged(path, KIND)
    return path.name, subjects, metadata.get("vision", ""), metadata.get("pose_is", POSE), run, step


def _mappers(weights: Mapping[str, Tensor]) -> dict[str, dict[str, AttributeMapper]]:
    """Raises RuntimeError or KeyError if a mapper is not whole."""
    found: dict[str, dict[str, dict[str, Tensor]]] = {}
    for name, tensor in weights.items():
        attribute, key, rest = name.split(".", 2)
        found.setdefault(attribute, {}).setdefault(key, {})[rest] = tensor.float()
    if found and set(found) != set(ATTRIBUTES):
        raise KeyError
    return {attribute: {key: _mapper(state) for key, state in by_key.items()} for attribute, by_key in found.items()}


def _mapper(state: Mapping[str, Tensor]) -> AttributeMapper:
    width, seen = state["first.weight"].shape
    with torch.device("meta"):
        mapper = AttributeMapper(seen, width)
    mapper.load_state_dict(dict(state), assign=True)
    return mapper.requires_grad_(False)


def _jpeg(picture: Tensor) -> Tensor:
    pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=85)
    return torch.from_numpy(np.frombuffer(file.getvalue(), np.uint8).copy())


register_folder(FOLDER, (".safetensors",))
