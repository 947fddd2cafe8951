"""How much memory a call takes at its peak."""
from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """bytes: the most that was taken beyond what was there before, known when the context has ended."""

    bytes: int = 0


@contextlib.contextmanager
def peak_memory() -> Iterator[Peak]:
    """The process's own on Linux; elsewhere what Python and numpy took."""
    peak = Peak()
    if not _CLEAR.exists():
        tracemalloc.start()
        try:
            yield peak
        finally:
            peak.bytes = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return
    _CLEAR.write_text("5")
    before = _resident("VmRSS")
    try:
        yield peak
    finally:
        peak.bytes = _resident("VmHWM") - before


def _resident(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
