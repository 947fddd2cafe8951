"""Files that are written whole or not at all."""
from __future__ import annotations

import contextlib
import os
import re
import secrets
import unicodedata
from pathlib import Path, PureWindowsPath
from typing import Iterator, Mapping

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

LONGEST_NAME = 200  # bytes in UTF-8: file systems take 255, and numbers, extensions and ".tmp" are added
ROOM_FOR_STEP = 40  # bytes that a run adds to what a person typed: a digest of 8 letters, a step
_NOT_IN_NAMES = re.compile(r"[^\w.+-]+")
_RESERVED_BY_WINDOWS = re.compile(r"^(con|prn|aux|nul|(?:com|lpt)[\d¹²³])(?=\.|$)", re.IGNORECASE)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    """Writes `tensors` (any device, any dtype, moved to the CPU) and returns `path`; folders are made as needed.

    What is on the disk is compared with `tensors`, bit by bit, before it takes the place of an older file.
    Raises OSError with one sentence if it cannot be written; an older file is then unchanged.
    """
    stored = _stored(tensors)
    with atomic(path) as unfinished:
        safetensors.torch.save_file(stored, unfinished, dict(metadata or {}))
        _check_written(unfinished, stored)
    return Path(path)


def write_text(path: Path, text: str) -> Path:
    """Writes `text` in UTF-8 and returns `path`. Raises OSError as `write_safetensors` does."""
    with atomic(path) as unfinished:
        unfinished.write_bytes(text.encode("utf-8"))
    return Path(path)


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Gives the path of a new file beside `path`, which takes the place of `path` when the context ends well.

    On any exception it is removed and `path` is unchanged. Raises OSError with one sentence if writing fails.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        _flush_to_disk(unfinished)
        os.replace(unfinished, path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"Could not write {path}: {_reason(error)}. Nothing that was there before has changed; make room "
                      "or make the folder writable, then run again.") from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def version_of(path: Path | None) -> str:
    """Text that changes when the file at `path` does, for caches; "" if there is none."""
    try:
        return f"{path} {path.stat().st_mtime_ns} {path.stat().st_size}" if path else ""
    except OSError:
        return ""


def safe_name(name: str, what: str, room: int = 0) -> str:
    """`name` as a relative path that every file system and ComfyUI's prompts accept, e.g. "dogs/my-dog".

    White space, brackets, commas, colons and the like become "-"; letters are composed (Unicode NFC), since some systems
    store them so and others do not; "con" and other names that Windows keeps for itself get a "_".
    what: the input's name, for messages. room: bytes that will be added to the name.
    Raises ValueError if nothing is left, if a part is longer than 200 bytes less `room`, or if the name is absolute or
    climbs up with "..".
    """
    parts = unicodedata.normalize("NFC", name).strip().replace("\\", "/").split("/")
    if PureWindowsPath(name.strip()).drive or (len(parts) > 1 and any(not part.strip(" .") for part in parts)):
        raise ValueError(f"{what} '{name}' would leave ComfyUI's folder; write a plain name such as my-dog or "
                         "dogs/my-dog, without a drive, without '..' and without a slash at its ends.")
    tidy = [_RESERVED_BY_WINDOWS.sub(r"\1_", _NOT_IN_NAMES.sub("-", part).strip("-."), count=1) for part in parts]
    if not all(tidy):
        raise ValueError(f"{what} '{name}' has no letter or digit; write a file name such as my-dog.")
    longest = LONGEST_NAME - room
    if max(len(part.encode("utf-8")) for part in tidy) > longest:
        raise ValueError(f"{what} '{name[:20]}…' is too long for a file name; write at most {longest} letters, or "
                         f"{longest // 3} of a script such as kanji.")
    return "/".join(tidy)


def folded(name: str) -> str:
    """What two names share if a file system may take one for the other: it may ignore case and how letters are composed."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def holds(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bool:
    """Whether the safetensors file at `path` has exactly these tensors, bit by bit, and this metadata if given."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return ((metadata is None or (file.metadata() or {}) == dict(metadata)) and set(file.keys()) == set(tensors)
                    and all(_same(file.get_tensor(name), tensor) for name, tensor in tensors.items()))
    except (OSError, SafetensorError):
        return False


def _stored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous, each with memory of its own, as the safetensors format wants them."""
    seen: set[int] = set()
    stored = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        stored[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return stored


def _check_written(path: Path, tensors: Mapping[str, Tensor]) -> None:
    if not holds(path, tensors):
        raise OSError("what was read back differs from what was written")


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(_bytes(one), _bytes(other.cpu()))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def _flush_to_disk(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).rstrip(".")
