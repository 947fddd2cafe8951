"""Weights in files that others wrote: read without running any code in them, and checked before they are used."""
from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from .foreign.opened import Refused, opened
from .foreign.safetensors_file import MOST_HEADER, MOST_OWN_HEADER, each_tensor, read_header, read_safetensors
from .foreign.shapes import MOST_LETTERS
from .foreign.text import short, shown_name
from .foreign.torch_file import read_torch

_SAFETENSORS = (".safetensors", ".sft")
_DAMAGED = (ValueError, LookupError, TypeError, AttributeError, OverflowError, NotImplementedError, RuntimeError,
            EOFError, struct.error, zipfile.BadZipFile)
_AT_ONCE = 2**20  # numbers that are looked at together
T = TypeVar("T")


def read_weights(path: Path, kind: str, most_header: int = MOST_HEADER) -> tuple[Any, dict[str, str]]:
    """What a .safetensors file or a torch pickle holds, on the CPU, and the metadata of a .safetensors file.

    kind: what the file should be, for messages: "embedding file". most_header: bytes of a .safetensors file's header.
    Memory stays within the size of the file and 64 MB. Raises ValueError with one sentence if the file cannot be read,
    is damaged, or holds more than tensors, lists and dicts.
    """
    if Path(path).suffix.lower() in _SAFETENSORS:
        return _read(path, kind, lambda file, size: read_safetensors(file, size, most_header))
    return _read(path, kind, read_torch), {}


def read_state_dict(path: Path, kind: str) -> dict[str, Tensor]:
    """Tensors by name; those inside dicts of dicts get names joined by dots. Raises ValueError as `read_weights`."""
    content, _ = read_weights(path, kind)
    if not isinstance(content, Mapping):
        raise damaged(path, kind)
    tensors: dict[str, Tensor] = {}
    for name, tensor in _flat(content, ""):
        if name in tensors or len(name) > MOST_LETTERS:
            raise damaged(path, kind)
        tensors[name] = tensor
    return tensors


def read_metadata(path: Path, kind: str, most_header: int = MOST_HEADER) -> dict[str, str]:
    """What a .safetensors file says of itself; its tensors are not read. Raises ValueError as `read_weights`."""
    return _read(path, kind, lambda file, size: read_header(file, size, most_header))[1]


def holds(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bool:
    """Whether the .safetensors file at `path` has exactly these tensors, bit by bit, and this metadata if given."""
    def compare(file: BufferedReader, size: int) -> bool:
        entries, said = read_header(file, size, MOST_OWN_HEADER)
        return (metadata is None or said == dict(metadata)) and set(entries) == set(tensors) and all(
            _same(tensor, tensors[name]) for name, tensor in each_tensor(file, size, entries))

    try:
        return _read(path, "file", compare)
    except ValueError:
        return False


def damaged(path: Path, kind: str) -> ValueError:
    """The sentence for a file that is not what it should be."""
    return ValueError(f"{shown_name(Path(path).name)} is damaged or no {kind}; download or save it again.")


def check_numbers(path: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raises ValueError if one of the (name, tensor) pairs is empty, or holds other than finite real numbers."""
    file = shown_name(Path(path).name)
    for name, tensor in tensors:
        if not tensor.is_floating_point():
            raise ValueError(f"{file} holds numbers of the type {str(tensor.dtype).removeprefix('torch.')} "
                             f"(look at {short(name)}), where trained weights are float32, float16 or bfloat16; get "
                             "another file.")
        if not tensor.numel():
            raise ValueError(f"{file} holds an empty tensor (look at {short(name)}, {tuple(tensor.shape)}); "
                             "get another file.")
        if not is_finite(tensor):
            raise ValueError(f"{file} holds values that are not numbers (NaN or infinite, look at {short(name)}); "
                             "use an earlier file.")


def shapes_of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without numbers, float32 on the device "meta": to try out a network at no cost."""
    return {name: torch.empty(weight.shape, device="meta") for name, weight in weights.items()}


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers of a real tensor are finite as float32; needs little memory of its own."""
    if tensor.ndim and not tensor.is_contiguous() and tensor.shape[0] > 1:
        return all(is_finite(part) for part in tensor)
    return all(bool(part.float().isfinite().all()) for part in tensor.reshape(-1).split(_AT_ONCE))


def _read(path: Path, kind: str, read: Callable[[BufferedReader, int], T]) -> T:
    path = Path(path)
    try:
        with opened(path) as (file, size):
            if not size:
                raise Refused("is empty; download or save it again")
            return read(file, size)
    except Refused as error:
        raise ValueError(f"{shown_name(path.name)} {error}.") from error
    except MemoryError as error:
        raise ValueError(f"{shown_name(path.name)} does not fit into memory; close other programs, or use a smaller "
                         "file.") from error
    except _DAMAGED as error:
        raise damaged(path, kind) from error


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(_bytes(one), _bytes(other.cpu()))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def _flat(content: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, Tensor):
            yield f"{prefix}{name}", value
