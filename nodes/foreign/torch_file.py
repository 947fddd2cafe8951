"""Files of torch.save: archives since torch 1.6, and the stream of pickles and numbers before."""
from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Callable
from io import BufferedReader
from typing import Any

import torch
from torch import Tensor

from .opened import Refused, read_exactly
from .plain_pickle import Stored, read_plain
from .shapes import MOST_TENSORS, item_size
from .text import readable_size

MOST_PICKLE = 16 * 2**20  # bytes of what describes the tensors, without their numbers
MOST_DIRECTORY = 2 * 2**20  # bytes of an archive's list of parts
MOST_ENTRIES = 100_000
MOST_LEVELS = 16
SPARE = 2**20  # by how much the tensors may be larger than the file: vectors repeated by a stride of 0
_MAGIC, _PROTOCOL = 0x1950a86a20f9469cfc6c, 1001
_PACKED = "is an archive with compressed or encrypted parts, which torch never writes; save it again as .safetensors"
_SCRIPT = ("is a TorchScript archive, which holds code, so it was not opened; get the weights alone, best as "
           ".safetensors")
_TAR = "is a tar archive, as torch wrote before 2017, so it was not opened; save it again as .safetensors"

BytesOf = Callable[[str], Tensor]


def read_torch(file: BufferedReader, size: int) -> Any:
    """What the file holds, tensors on the CPU inside dicts, lists and tuples; each container is one of its own.

    Raises ValueError if the file is damaged, Refused if it is whole and not what is read here.
    """
    start = file.read(512)
    file.seek(0)
    if start[257:262] == b"ustar":
        raise Refused(_TAR)
    content, bytes_of = (_from_archive if start.startswith(b"PK\3\4") else _from_stream)(file, size)
    return _Builder(bytes_of, size).build(content, 0)


# ------------------------------------------------------------------------------------------------ archives
class _Sparing(io.RawIOBase):
    """A file of which never much is read at once: the list of parts is taken into memory whole by zipfile."""

    def __init__(self, file: BufferedReader):
        self._file = file

    def read(self, count: int = -1) -> bytes:
        """As the file's, if it is not too much."""
        data = self._file.read(MOST_DIRECTORY + 1 if count is None or count < 0 else min(count, MOST_DIRECTORY + 1))
        if len(data) > MOST_DIRECTORY:
            raise Refused("is an archive of too many parts; save it again as .safetensors")
        return data

    def seek(self, *where: int) -> int:
        """As the file's."""
        return self._file.seek(*where)

    def tell(self) -> int:
        """As the file's."""
        return self._file.tell()


def _from_archive(file: BufferedReader, size: int) -> tuple[Any, BytesOf]:
    parts = zipfile.ZipFile(_Sparing(file)).infolist()
    by_name = {part.filename: part for part in parts}
    if any(part.compress_type != zipfile.ZIP_STORED or part.flag_bits & 1 or part.file_size != part.compress_size
           for part in parts):
        raise Refused(_PACKED)
    if len(by_name) != len(parts) or sum(part.file_size for part in parts) > size:
        raise ValueError("parts of the archive lie in each other")
    root = _root(list(by_name))
    if f"{root}constants.pkl" in by_name:
        raise Refused(_SCRIPT)

    def bytes_of(name: str) -> Tensor:
        file.seek(_start(file, by_name[root + name]))
        return read_exactly(file, by_name[root + name].file_size)

    if f"{root}byteorder" in by_name and bytes_of("byteorder").numpy().tobytes() != b"little":
        raise Refused("was written on a computer with another order of bytes; save it again as .safetensors")
    if by_name[f"{root}data.pkl"].file_size > MOST_PICKLE:
        raise Refused("is a pickle of too many parts; save it again as .safetensors")
    content, _ = read_plain(io.BytesIO(bytes_of("data.pkl").numpy().tobytes()))
    return content, lambda key: bytes_of(f"data/{key}")


def _root(names: list[str]) -> str:
    """The folder that all parts are in, with its slash."""
    (pickled,) = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    return pickled.removesuffix("data.pkl")


def _start(file: BufferedReader, part: zipfile.ZipInfo) -> int:
    """Where a part's bytes begin, behind its own header."""
    file.seek(part.header_offset)
    mark, name, extra = struct.unpack("<4s22xHH", file.read(30))
    if mark != b"PK\3\4":
        raise ValueError("a part of the archive is not where it should be")
    return part.header_offset + 30 + name + extra


# ------------------------------------------------------------------------------------------------ streams
def _from_stream(file: BufferedReader, size: int) -> tuple[Any, BytesOf]:
    head = io.BytesIO(file.read(MOST_PICKLE))
    magic, protocol, about = (read_plain(head)[0] for _ in range(3))
    if (magic, protocol) != (_MAGIC, _PROTOCOL) or not about["little_endian"]:
        raise ValueError("this is no file of torch")
    (content, storages), (keys, _) = read_plain(head), read_plain(head)
    places, position = {}, head.tell()
    for storage in (storages[key] for key in keys):
        file.seek(position)
        (count,) = struct.unpack("<q", file.read(8))
        length = count * item_size(storage.dtype)
        if count != storage.count or position + 8 + length > size:
            raise ValueError("a storage is not as long as it should be")
        places[storage.key] = position + 8, length
        position += 8 + length

    def bytes_of(key: str) -> Tensor:
        file.seek(places[key][0])
        return read_exactly(file, places[key][1])

    return content, bytes_of


# ------------------------------------------------------------------------------------------------ tensors
class _Builder:
    """Makes tensors of what a pickle describes. left: bytes that they may still have in all."""

    def __init__(self, bytes_of: BytesOf, size: int):
        self.bytes_of, self.size, self.left = bytes_of, size, size + SPARE
        self.storages: dict[str, Tensor] = {}
        self.tensors: dict[Stored, Tensor] = {}
        self.entries = 0

    def build(self, value: Any, level: int) -> Any:
        """The same with tensors for `Stored`."""
        self.entries += 1
        if self.entries > MOST_ENTRIES or level > MOST_LEVELS:
            raise Refused("holds lists in lists without an end; save its tensors again as .safetensors")
        if isinstance(value, dict):
            return {key: self.build(each, level + 1) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self.build(each, level + 1) for each in value)
        return self.tensor(value) if isinstance(value, Stored) else value

    def tensor(self, stored: Stored) -> Tensor:
        """Two names for one tensor get one."""
        if stored not in self.tensors:
            self.left -= math.prod(stored.size) * item_size(stored.dtype)
            if self.left < 0 or len(self.tensors) == MOST_TENSORS:
                raise Refused(f"describes more numbers than its {readable_size(self.size)} can hold; get it from "
                              "another source, best as .safetensors")
            self.tensors[stored] = self._view(stored)
        return self.tensors[stored]

    def _view(self, stored: Stored) -> Tensor:
        if stored.storage not in self.storages:
            self.storages[stored.storage] = self.bytes_of(stored.storage)
        data = self.storages[stored.storage]
        numbers = data[:len(data) // item_size(stored.dtype) * item_size(stored.dtype)].view(stored.dtype)
        if not math.prod(stored.size):
            return numbers.new_empty(stored.size)
        last = stored.offset + sum((size - 1) * stride for size, stride in zip(stored.size, stored.stride))
        if last >= len(numbers):
            raise ValueError("a tensor reaches beyond its storage")
        return torch.as_strided(numbers, stored.size, stored.stride, stored.offset)
