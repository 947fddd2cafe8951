"""Files that are written whole or not at all."""
from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from .foreign.opened import Refused, opened
from .weight_files import holds

try:
    import fcntl
except ImportError:  # Windows itself keeps others from deleting a file that is open
    fcntl = None

MARK = "personalize"  # metadata key of every file this pack wrote; its value is the version of the metadata
RETRY_SECONDS = 5.0
_TEMPORARY = ".personalize-*.tmp"
_DAY = 24 * 60 * 60
_LOCK = "lock"
_PASSING = {errno.EACCES, errno.EPERM, errno.EBUSY, errno.EAGAIN,
            errno.ENOENT} | ({5, 32, 33} if os.name == "nt" else set())
DIFFERS = "what was read back differs from what was written"
SMALL_FILE, READ_OF_LARGE = 2**20, 2**16  # bytes
_OS_ERROR = re.compile(r"os error (\d+)")


class NameTaken(Exception):
    """A file that was to be new is there already: another process has been faster."""


class NotWritten(OSError):
    """A file that could not be written, in one sentence; what stood there before is unchanged.

    path: of the file. reason: what the system said.
    """

    def __init__(self, path: Path, reason: str):
        super().__init__(
            f"Could not write {path}: {reason}. Nothing that was there before has changed; make room or make "
            "the folder writable, then run again."
        )
        self.path, self.reason = path, reason


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None,
                      new: bool = False) -> Path:
    """Writes `tensors` (any device, any dtype, moved to the CPU) and returns `path`; folders are made as needed.

    What is on the disk is compared with `tensors`, bit by bit, before it takes the place of an older file.
    new: raise NameTaken if there is an older file. Raises NotWritten if it cannot be written; an older file is then
    unchanged.
    """
    stored = _stored(tensors)

    def write(unfinished: Path) -> None:
        safetensors.torch.save_file(stored, unfinished, dict(metadata or {}))
        _check_written(unfinished, stored)

    return write_file(path, write, new)


def write_torch(path: Path, content: Mapping[str, Any], new: bool = False) -> Path:
    """Writes dicts of tensors as `torch.save` does and returns `path`; the same content gives the same bytes.

    Raises as `write_safetensors`.
    """
    data = torch_bytes(content)

    def write(unfinished: Path) -> None:
        unfinished.write_bytes(data)
        if unfinished.read_bytes() != data:
            raise OSError(DIFFERS)

    return write_file(path, write, new)


def torch_bytes(content: Mapping[str, Any]) -> bytes:
    """What `write_torch` writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def holds_bytes(path: Path, content: bytes) -> bool:
    """Whether there is a file at `path` with exactly these bytes."""
    try:
        with opened(path) as (file, size):
            return size == len(content) and file.read(size) == content
    except Refused:
        return False


def write_text(path: Path, text: str) -> Path:
    """Writes `text` in UTF-8, unless the file holds it already, and returns `path`. Raises as `write_safetensors`."""
    content = text.encode("utf-8")
    if holds_bytes(path, content):
        return Path(path)
    return write_file(path, lambda unfinished: unfinished.write_bytes(content))


def write_file(path: Path, write: Callable[[Path], object], new: bool = False) -> Path:
    """Lets `write` make a new file, which takes the place of `path` when it is whole and on the disk; returns `path`.

    A write that is denied, as by a virus scanner or a sync client that looks at the file, is tried again for
    RETRY_SECONDS. new: raise NameTaken if `path` is there. Raises NotWritten if writing fails; on any exception the new
    file is removed and `path` is unchanged.
    """
    path, started = Path(path), time.monotonic()
    while True:
        try:
            _write_once(path, write, new)
            return path
        except (OSError, SafetensorError) as error:
            if not _may_pass(error) or time.monotonic() - started > RETRY_SECONDS:
                raise NotWritten(path, reason(error)) from error
        time.sleep(RETRY_SECONDS / 20)


def remove_leftovers(folders: Iterable[Path]) -> list[Path]:
    """Removes what killed writers left unfinished in and below `folders`; returns the folders that are gone.

    What is still being written, by this or another process, is locked and stays. Where a file system knows no locks,
    what was begun in the last day stays.
    """
    removed = []
    for folder in folders:
        with contextlib.suppress(OSError):
            for path in list(Path(folder).rglob(_TEMPORARY)):
                if _remove_leftover(path):
                    removed.append(path)
    return removed


@contextlib.contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Marks `folder` as one that a run is writing into, for `unfinished` in any process; not where that cannot be
    written.
    """
    with contextlib.ExitStack() as marked:
        with contextlib.suppress(OSError):
            marked.enter_context(_workplace(Path(folder)))
        yield


def unfinished(folders: Iterable[Path]) -> list[Path]:
    """Folders in and below `folders` that writers work in, or that killed ones left."""
    return [path for folder in folders for path in Path(folder).rglob(_TEMPORARY)]


def check_writable(folder: Path) -> None:
    """Makes `folder` and writes a byte there, which is removed again. Raises OSError if that fails."""
    with _workplace(folder) as inside:
        (inside / "byte").write_bytes(b"\0")


def version_of(path: Path | None) -> str:
    """Text that changes when the content of the file at `path` does, for caches; "" if there is none.

    Small files are read, as who synchronises files restores size and time. Of large ones it is read in three places;
    they also change their version with their times and place on the disk.
    """
    try:
        return f"{path} {_content_version(path)}" if path else ""
    except OSError:
        return ""


def _content_version(path: Path) -> str:
    about = path.stat()
    with open(path, "rb") as file:
        if about.st_size <= SMALL_FILE:
            return hashlib.sha256(file.read()).hexdigest()
        parts = []
        for start in (0, about.st_size // 2, about.st_size - READ_OF_LARGE):
            file.seek(start)
            parts.append(file.read(READ_OF_LARGE))
    return (f"{hashlib.sha256(b''.join(parts)).hexdigest()} {about.st_size} {about.st_mtime_ns} {about.st_ctime_ns} "
            f"{about.st_ino}")


def reason(error: Exception) -> str:
    """Why writing failed, without a full stop."""
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        path = Path(str(error.filename))
        file = next((place for place in (path, *path.parents) if place.is_file()), path)
        return f"{file} is a file where a folder should be"
    return getattr(error, "strerror", None) or str(error).rstrip(".")


def _write_once(path: Path, write: Callable[[Path], object], new: bool) -> None:
    with _workplace(path.parent) as folder:
        unfinished = folder / "unfinished"
        write(unfinished)
        _flush_to_disk(unfinished)
        if not new or not _linked(unfinished, path):
            os.replace(unfinished, path)


def _linked(unfinished: Path, path: Path) -> bool:
    """Gives the file its name, which unlike replacing fails if it is taken; False where a file system has no links."""
    try:
        os.link(unfinished, path)
    except FileExistsError as error:
        raise NameTaken(str(path)) from error
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _workplace(parent: Path) -> Iterator[Path]:
    """A new folder in `parent`, removed in the end; its lock ends with the process, however that ends."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / _TEMPORARY.replace("*", secrets.token_hex(4))
    folder.mkdir()
    try:
        with open(folder / _LOCK, "xb") as held:
            if fcntl:
                with contextlib.suppress(OSError):
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_leftover(folder: Path) -> bool:
    lock = folder / _LOCK
    try:
        with open(lock, "rb+") as file:
            if fcntl and not _is_unlocked(file):
                return False
        lock.unlink()
    except FileNotFoundError:
        pass
    except OSError:
        return False
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def _is_unlocked(file: BinaryIO) -> bool:
    assert fcntl is not None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return time.time() - os.fstat(file.fileno()).st_mtime > _DAY


def _may_pass(error: Exception) -> bool:
    """Whether the same write may succeed in a moment."""
    told = _OS_ERROR.search(str(error))
    return (getattr(error, "errno", None) or (int(told[1]) if told else 0)) in _PASSING


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
        raise OSError(DIFFERS)


def _flush_to_disk(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
