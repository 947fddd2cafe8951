"""Bounds on the memory that pictures take, checked before anything is decoded or drawn."""
from __future__ import annotations

from ..memory import check_fits, free_memory
from .augment import CHANNELS, Preparation

SMALLEST = 8
LARGEST = 100_000_000
MOST_TIMES_AS_LONG = 8
LARGEST_SUBJECT = 16 * 2**30
BYTES = 4


def check_shape(name: str, width: int, height: int) -> None:
    """Raises ValueError if a picture of that many pixels is too small, too large or too long to train on."""
    shorter, longer = sorted((width, height))
    if shorter < SMALLEST:
        raise ValueError(f"{name} is {width}×{height} pixels; training needs at least {SMALLEST} on each side.")
    if width * height > LARGEST:
        raise ValueError(f"{name} is {width}×{height} pixels, more than the {LARGEST // 10**6} million that are read; make "
                         "it smaller, 2048 on its shorter side is plenty.")
    if longer > MOST_TIMES_AS_LONG * shorter:
        raise ValueError(f"{name} is {width}×{height} pixels, more than {MOST_TIMES_AS_LONG} times as long as wide; cut it "
                         "around the subject.")


def check_memory(pictures: int, how: Preparation) -> None:
    """Raises ValueError if that many pictures, all their versions, take more memory than is allowed or free."""
    needed = (pictures + 1) * how.versions * how.size**2 * CHANNELS * BYTES
    most = int(min(LARGEST_SUBJECT, free_memory()) * how.versions // needed)
    variants = f"variants to at most {most}, or size lower" if how.augmentation == "as released" and most else "size lower"
    check_fits(needed, LARGEST_SUBJECT, f"{pictures} pictures, {how.versions} of each, at {how.size}×{how.size}",
               f"set {variants}, or use fewer pictures")
