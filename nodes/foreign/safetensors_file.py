"""The safetensors format: a header's length, the header in JSON, the tensors' bytes."""
from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from io import BufferedReader
from typing import Any

from torch import Tensor

from .opened import Refused, read_exactly
from .shapes import MOST_LETTERS, MOST_TENSORS, check_shape, item_size, known_dtypes
from .text import parse_json, readable_size, short

MOST_HEADER = 2**23
MOST_OWN_HEADER = 64 * 2**20  # of a saved state: the history of 100 000 steps
DTYPES = known_dtypes({
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64",
    "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool", "C64": "complex64"})


def read_safetensors(file: BufferedReader, size: int, most_header: int = MOST_HEADER
                     ) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name on the CPU, and the metadata.

    Raises ValueError if the file is damaged, Refused if it is whole and not what is read here.
    """
    entries, metadata = read_header(file, size, most_header)
    return dict(each_tensor(file, size, entries)), metadata


def each_tensor(file: BufferedReader, size: int,
                entries: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) one after the other, as `entries` of `read_header` says; the file stands behind its header.

    Raises ValueError unless they make up the rest of the file.
    """
    left, position = size - file.tell(), 0
    for name in sorted(entries, key=lambda name: entries[name]["data_offsets"]):
        begin, end = entries[name]["data_offsets"]
        if begin != position or end > left:
            raise ValueError(f"the bytes of {name} overlap others or are not there")
        numbers = read_exactly(file, end - begin).view(_dtype(name, entries[name]["dtype"]))
        yield name, numbers.reshape(entries[name]["shape"])
        position = end
    if position != left:
        raise ValueError("the file is longer than its header says")


def read_header(file: BufferedReader, size: int, most: int = MOST_HEADER) -> tuple[dict[str, dict[str, Any]],
                                                                                   dict[str, str]]:
    """Name → {dtype, shape, data_offsets}, which fit each other, and the metadata. Raises as `read_safetensors`."""
    (length,) = struct.unpack("<Q", file.read(8))
    if length > size - 8:
        raise ValueError("the header is longer than the file")
    if length > most:
        raise Refused(f"has a header of {readable_size(length)}, more than the {readable_size(most)} that are read; "
                      "save it again without such large metadata")
    header = parse_json(file.read(length))
    metadata = header.pop("__metadata__", None) or {}
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("the metadata is not all text")
    if len(header) > MOST_TENSORS:
        raise Refused(f"holds {len(header)} tensors, more than the {MOST_TENSORS} that are read; use another file")
    for name, entry in header.items():
        _check_entry(name, entry)
    return header, metadata


def _check_entry(name: str, entry: Mapping[str, Any]) -> None:
    begin, end = entry["data_offsets"]
    if len(name) > MOST_LETTERS or type(begin) is not int or type(end) is not int or not 0 <= begin <= end:
        raise ValueError("a tensor has an impossible name or place")
    check_shape(entry["shape"])
    if math.prod(entry["shape"]) * item_size(_dtype(name, entry["dtype"])) != end - begin:
        raise ValueError(f"the shape of {name} does not fit its bytes")


def _dtype(name: str, dtype: str):
    if dtype not in DTYPES:
        raise Refused(f"holds numbers of the type {short(str(dtype), 20)} (look at {short(name)}), which is not read "
                      "here; save it again as float32 or float16")
    return DTYPES[dtype]
