"""Embedding files in ComfyUI's folders: what stock nodes read as `embedding:name`."""
from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path

import folder_paths
import torch
from torch import Tensor

from ..files import MARK, NameTaken, holds_bytes, torch_bytes, write_safetensors, write_torch
from ..foreign.text import shown_name
from ..names import ROOM_FOR_STEP, folded, safe_name
from ..weight_files import holds
from .embedding_formats import OF_LAYERS, STANDARD_WIDTHS, read_embedding
from .embedding_layouts import LAYOUTS, SAFETENSORS, FileLayout
from .encoder_kinds import TextEncoder
from .vectors import WordVectors

KIND = "embeddings"
_EXTENSIONS = (".safetensors", ".pt", ".bin")  # in the order in which ComfyUI tries them


def save_embedding(name: str, vectors: Mapping[str, Tensor], metadata: Mapping[str, str], subfolder: str = "",
                   layout: str = SAFETENSORS) -> Path:
    """Writes an embedding file and returns its path; nothing is written if that name's file has this content already.

    name: file name without extension, may hold subfolders; "-2", "-3", … is added while the name is taken in any
        embeddings folder, because `embedding:name` searches all of them and CLIP Text Encode caches by name.
    vectors: encoder key ("clip_l", "clip_g", "clip_h") → (n, d), stored as float32. WordVectors with an axis of layers
        are stored beside their mean, which is what stock nodes read.
    layout: SAFETENSORS or one of LAYOUTS, which keep of the metadata only the "placeholder".
    Raises ValueError if the name leaves the folder, a vector is not finite or the layout cannot hold them all, OSError
    if the file cannot be written.
    """
    stem = safe_name(f"{subfolder}/{name}" if subfolder else name, "The file name")
    vectors = _for_file(vectors, stem, layout)
    file = _WholeFile(vectors, metadata) if layout == SAFETENSORS else _PickledFile(vectors, metadata, LAYOUTS[layout])
    for path, taken_by in _candidates(stem, file.extension):
        if not taken_by:
            with contextlib.suppress(NameTaken):
                return file.write(path)
            taken_by = {os.path.realpath(path)}
        if taken_by == {os.path.realpath(path)} and file.is_at(path):
            return path
    raise AssertionError("there is always another candidate")


def load_embedding(path: Path | str, encoders: Sequence[TextEncoder] = ()) -> tuple[WordVectors, dict[str, str]]:
    """Vectors by encoder key, float32 on the CPU, (n, d) or (layers, n, d), and metadata of an embedding file of any
    known tool.

    encoders: of the CLIP the vectors are for; tells what a tensor without an encoder's name belongs to. Without them
        the widths of SD1.x and SDXL (768, 1280) and of SD2.x (1024) decide.
    Raises ValueError with one sentence if the file cannot be read safely or does not hold exactly one word.
    """
    widths = {encoder.key: encoder.width for encoder in encoders} or STANDARD_WIDTHS
    return read_embedding(Path(path), widths)


def prompt_text(path: Path) -> str:
    """What to write in a prompt for the embedding file at `path`: "embedding:my-dog"."""
    for folder in folder_paths.get_folder_paths(KIND):
        if Path(path).is_relative_to(folder):
            return f"embedding:{Path(path).relative_to(folder).with_suffix('').as_posix()}"
    raise ValueError(f"{path} is in none of ComfyUI's embeddings folders; copy it to {embeddings_folder()}.")


def find_embedding(name: str) -> Path:
    """Path of the embedding that a list entry, a typed name or "embedding:name" stands for.

    Raises ValueError if there is none in ComfyUI's embeddings folders.
    """
    wanted = name.strip().removeprefix("embedding:").replace("\\", "/")
    if wanted and ".." not in wanted.split("/"):
        for folder in folder_paths.get_folder_paths(KIND):
            for extension in ("", *_EXTENSIONS):
                path = Path(folder) / (wanted + extension)
                if path.is_file() and path.is_relative_to(folder):
                    return path
    raise ValueError(f"There is no embedding '{shown_name(name)}' in {embeddings_folder()}; choose one from the list, "
                     "or put the file there and refresh the page (key R).")


def embedding_names() -> list[str]:
    """Names of all embedding files ComfyUI finds now, relative to their folder, with extension."""
    return folder_paths.get_filename_list(KIND)


def embeddings_folder() -> Path:
    """The first folder in which ComfyUI searches embeddings: where new files go."""
    return Path(folder_paths.get_folder_paths(KIND)[0])


def file_stem(placeholder: str, step: int | None = None) -> str:
    """File name for a placeholder, "<my-dog>" → "my-dog"; of a training step, "my-dog-000050"."""
    stem = safe_name(placeholder.replace("/", "-").replace("\\", "-"), "The placeholder", ROOM_FOR_STEP)
    return stem if step is None else f"{stem}-{step:06d}"


def file_stems(placeholders: Sequence[str]) -> dict[str, str]:
    """Placeholder → file name, another one for each.

    Those that would share one, as "<my-dog>" and "my-dog!" do, get the beginning of a digest of the word: the same in
    every run, whatever order they come in.
    """
    stems = {placeholder: file_stem(placeholder) for placeholder in placeholders}
    for length in (6, 12):  # a word may be written like another one with its digest
        names = Counter(map(folded, stems.values()))
        stems = {word: f"{stem}-{_digest(word)[:length]}" if names[folded(stem)] > 1 else stem
                 for word, stem in stems.items()}
    return stems


def _for_file(vectors: Mapping[str, Tensor], stem: str, layout: str) -> Mapping[str, Tensor]:
    """What a file holds under encoder keys, and under keys of their own for layers."""
    layered = isinstance(vectors, WordVectors) and vectors.axis == "layer"
    plain = vectors.mean() if layered else vectors
    _check_vectors(plain, stem)
    if not layered:
        return plain
    if layout != SAFETENSORS:
        raise ValueError(f"{stem} has vectors for each layer of a model, which no other program reads from this "
                         "format; choose the format safetensors.")
    return {**plain, **{f"{key}{OF_LAYERS}": rows for key, rows in vectors.items()}}


def _check_vectors(vectors: Mapping[str, Tensor], stem: str) -> None:
    if not vectors:
        raise ValueError(f"There are no vectors to save as {stem}; train the concept first.")
    for key, value in vectors.items():
        if value.ndim != 2:
            raise ValueError(f"The vectors of {stem} for {key} have shape {tuple(value.shape)}; an embedding file "
                             "holds (number of vectors, width).")
        if not torch.isfinite(value).all():
            raise ValueError(f"The vectors of {stem} for {key} hold NaN or infinite values; save an earlier step.")


class _WholeFile:
    """ComfyUI's own layout: every encoder's vectors under its key, and all that is known of them."""

    extension = ".safetensors"

    def __init__(self, vectors: Mapping[str, Tensor], metadata: Mapping[str, str]):
        self.tensors = {key: value.detach().to("cpu", torch.float32) for key, value in vectors.items()}
        self.metadata = {**{key: str(value) for key, value in metadata.items()}, MARK: "1"}

    def is_at(self, path: Path) -> bool:
        return holds(path, self.tensors, self.metadata)

    def write(self, path: Path) -> Path:
        return write_safetensors(path, self.tensors, self.metadata, new=True)


class _PickledFile:
    """Another tool's layout."""

    def __init__(self, vectors: Mapping[str, Tensor], metadata: Mapping[str, str], layout: FileLayout):
        self.extension = layout.extension
        self.content = layout.of(metadata["placeholder"], vectors)

    def is_at(self, path: Path) -> bool:
        return holds_bytes(path, torch_bytes(self.content))

    def write(self, path: Path) -> Path:
        return write_torch(path, self.content, new=True)


def _digest(word: str) -> str:
    return hashlib.sha256(word.encode("utf-8")).hexdigest()


def _candidates(stem: str, extension: str) -> Iterator[tuple[Path, set[str]]]:
    """Paths for `stem`, `stem`-2, `stem`-3, …, each with the paths of all files that `embedding:` and its name may
    mean."""
    depth = stem.count("/") + 1
    files: dict[str, set[str]] = {}
    for root in folder_paths.get_folder_paths(KIND):
        for folder, _, names in os.walk(root, followlinks=True):
            for name in names:
                ending = "/".join(Path(folder, name).parts[-depth:])
                files.setdefault(folded(ending), set()).add(os.path.realpath(Path(folder, name)))
    for number in count(1):
        name = stem if number == 1 else f"{stem}-{number}"
        taken_by = set().union(*(files.get(folded(name + ending), ()) for ending in ("", *_EXTENSIONS)))
        yield embeddings_folder() / f"{name}{extension}", taken_by
