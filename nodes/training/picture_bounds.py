"""Bounds on the memory that pictures take, checked before anything is decoded or drawn."""
from __future__ import annotations

from ..memory import check_fits, free_memory
from .augment import CHANNELS, Preparation

SMALLEST = 8
LARGEST = 100_000_000
MOST_TIMES_AS_LONG = 8
LARGEST_PICTURE = 16 * 2**30
SHOWN = 64 * 2**20
BYTES = 4


def check_shape(name: str, width: int, height: int) -> None:
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


def check_memory(how: Preparation) -> None:
    """Raises ValueError if all versions of a picture, made and as the VAE gets them, take more than is allowed or
    free."""
    needed = 2 * how.versions * _bytes(how)
    most = int(min(LARGEST_PICTURE, free_memory()) * how.versions // needed)
    variants = (
        f"variants to at most {most}, or size lower" if how.augmentation == "as released" and most else "size lower"
    )
    what = f"{how.versions} versions of a picture at {how.size}×{how.size}"
    check_fits(needed, LARGEST_PICTURE, what, f"set {variants}")


def shown(pictures: int, how: Preparation) -> tuple[int, int]:
    """How many versions of each picture are shown, and of how many pictures, in SHOWN bytes; at least one of one."""
    each = max(1, min(how.versions, SHOWN // (pictures * _bytes(how))))
    return each, max(1, min(pictures, SHOWN // (each * _bytes(how))))


def _bytes(how: Preparation) -> int:
    return how.size**2 * CHANNELS * BYTES
