"""Bounds on the memory that pictures take, checked before anything is decoded or drawn."""
from __future__ import annotations

from .augment import CHANNELS, Preparation

SMALLEST = 8
LARGEST = 100_000_000
MOST_TIMES_AS_LONG = 8
AT_ONCE = 64 * 2**20
SHOWN = 64 * 2**20
BYTES = 4


def check_sides(name: str, width: int, height: int) -> None:
    """Raises ValueError if a picture of that many pixels is too small, too large or too long to train on."""
    shorter, longer = sorted((width, height))
    if shorter < SMALLEST:
        raise ValueError(f"{name} is {width}×{height} pixels; training needs at least {SMALLEST} on each side.")
    if width * height > LARGEST:
        raise ValueError(f"{name} is {width}×{height} pixels, more than the {LARGEST // 10**6} million that are read; "
                         "make it smaller, 2048 on its shorter side is plenty.")
    if longer > MOST_TIMES_AS_LONG * shorter:
        raise ValueError(f"{name} is {width}×{height} pixels, more than {MOST_TIMES_AS_LONG} times as long as wide; "
                         "cut it around the subject.")


def at_once(how: Preparation) -> int:
    """How many versions of a picture are made and encoded at a time, in AT_ONCE bytes; at least one."""
    return max(1, min(how.versions, AT_ONCE // _bytes(how)))


def count_shown(pictures: int, how: Preparation) -> tuple[int, int]:
    """How many versions of each picture are shown, and of how many pictures, in SHOWN bytes; at least one of one."""
    each = max(1, min(how.versions, SHOWN // (pictures * _bytes(how))))
    return each, max(1, min(pictures, SHOWN // (each * _bytes(how))))


def _bytes(how: Preparation) -> int:
    return how.size**2 * CHANNELS * BYTES
