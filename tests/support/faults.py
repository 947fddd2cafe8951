"""Disks that refuse: writes of the pack that fail as the system lets them fail."""
from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

FULL, DENIED = errno.ENOSPC, errno.EACCES


class Writes:
    """Paths of all files that were written or tried, in order; of those that failed."""

    def __init__(self):
        self.tried: list[Path] = []
        self.failed: list[Path] = []


@contextlib.contextmanager
def failing_writes(fails: Callable[[int, Path], bool], error: int = FULL,
                   retry_seconds: float = 0.2) -> Iterator[Writes]:
    """Inside, every write `fails` (number from 0, path) ends with the system's `error` when its file is full of bytes
    but not yet in its place, however often it is tried."""
    from personalize.nodes import files

    writes, write_file, flush = Writes(), files.write_file, files._flush_to_disk

    def counted(path, write, *how):
        writes.tried.append(Path(path))
        return write_file(path, write, *how)

    def refused(unfinished):
        number = len(writes.tried) - 1
        if fails(number, writes.tried[number]):
            writes.failed.append(writes.tried[number])
            raise OSError(error, os.strerror(error))
        flush(unfinished)

    with pytest.MonkeyPatch.context() as patch:
        from personalize.nodes.training import class_pictures, export, run_pictures

        for module in (files, class_pictures, export, run_pictures):
            patch.setattr(module, "write_file", counted)
        patch.setattr(files, "_flush_to_disk", refused)
        patch.setattr(files, "RETRY_SECONDS", retry_seconds)
        yield writes
