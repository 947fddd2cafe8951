"""Saying in one sentence that something will not fit into main memory, before it is made."""
from __future__ import annotations

import comfy.model_management as mm
import torch


def free_memory() -> int:
    """Bytes of main memory that nothing uses."""
    return mm.get_free_memory(torch.device("cpu"))


def check_fits(needed: float, most: int, what: str, remedy: str) -> None:
    """Raises ValueError if `needed` bytes are more than `most`, or than are free.

    what: subject of the sentence, in the plural. remedy: what to do, after "; ".
    """
    free = free_memory()
    if needed <= min(most, free):
        return
    limit = f"{in_gigabytes(free)} are free" if free < most else f"{in_gigabytes(most)} are allowed"
    raise ValueError(f"{what} take {in_gigabytes(needed)} of memory but only {limit}; {remedy}.")


def in_gigabytes(count: float) -> str:
    """Bytes to read, e.g. "16.0 GB"."""
    return f"{count / 2**30:.1f} GB"
