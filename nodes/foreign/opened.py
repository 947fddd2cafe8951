"""Opening files of which nothing is known yet."""
from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


class Refused(ValueError):
    """Why a file is not used, in words that follow its name: "is empty; …"."""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[BufferedReader, int]]:
    """The file and its size in bytes.

    Raises Refused if there is no ordinary file at `path` that can be read, or if it changes meanwhile.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # before opening it: a pipe would wait for someone to write
            raise Refused("is no file but a folder, a pipe or a device; choose a file")
        file = open(path, "rb")  # noqa: SIM115  closed below: what goes wrong while it is read is told otherwise
    except (OSError, ValueError) as error:
        raise _unreadable(error) from error
    with file:
        before = os.fstat(file.fileno())
        try:
            yield file, before.st_size
        except OSError as error:
            raise _unreadable(error) from error
        finally:
            after = os.fstat(file.fileno())
            if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                raise Refused("changed while it was read; wait until it is written, then run again")


def read_exactly(file: BufferedReader, count: int) -> Tensor:
    """The next `count` bytes of the file, (count,) uint8 on the CPU. Raises ValueError if there are fewer."""
    if not count:
        return torch.empty(0, dtype=torch.uint8)
    values = np.empty(count, np.uint8)
    left = values.data
    while len(left):
        read = file.readinto(left)
        if not read:
            raise ValueError("the file ends early")
        left = left[read:]
    return torch.from_numpy(values)


def _unreadable(error: Exception) -> Refused:
    if isinstance(error, Refused):
        return error
    reason = getattr(error, "strerror", None) or str(error)
    return Refused(f"cannot be read ({reason}); look at the file and its rights, or choose another one")
