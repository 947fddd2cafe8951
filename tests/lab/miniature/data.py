"""Batches of drawn scenes as tensors."""
from __future__ import annotations

import multiprocessing
import random
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
import torch

from .deadline import Deadline
from .factors import Scene, sample_scene
from .renderer import Drawing, draw


def pictures_tensor(drawings: Sequence[Drawing]) -> torch.Tensor:
    """(B, 3, 128, 128) float32 in 0..1."""
    stack = np.stack([drawing.picture for drawing in drawings])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float().div_(255)


def masks_tensor(drawings: Sequence[Drawing], which: str = "subject") -> torch.Tensor:
    """(B, 1, 128, 128) float32 in 0..1 of one of Drawing's masks."""
    return torch.from_numpy(np.stack([getattr(drawing, which) for drawing in drawings]))[:, None]


def scenes(count: int, split: str, seed: int) -> list[Scene]:
    """The ``count`` scenes that ``seed`` stands for."""
    rng = random.Random(f"{split} {seed}")
    return [sample_scene(rng, split) for _ in range(count)]


def draw_all(wanted: Iterable[Scene]) -> list[Drawing]:
    return [draw(scene) for scene in wanted]


def grouped(keys: Iterable[Hashable]) -> list[list[int]]:
    """Numbers of the keys that are equal, group by group."""
    found: dict[Hashable, list[int]] = {}
    for number, key in enumerate(keys):
        found.setdefault(key, []).append(number)
    return list(found.values())


def draw_picture(scene: Scene) -> np.ndarray:
    """(128, 128, 3) uint8. In a module that worker processes can import without ComfyUI."""
    return draw(scene).picture


def draw_pictures(wanted: Sequence[Scene], workers: int, deadline: Deadline) -> list[np.ndarray] | None:
    """All pictures, by ``workers`` processes (0: this one); None when the deadline comes first."""
    if workers:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            return pool.map(draw_picture, wanted, chunksize=32)
    pictures: list[np.ndarray] = []
    for scene in wanted:
        if deadline.over:
            return None
        pictures.append(draw_picture(scene))
    return pictures


class Pool:
    """A few thousand drawn pictures, slowly replaced by new ones, so that drawing never holds training up."""

    def __init__(self, size: int, seed: int):
        self.rng = random.Random(seed)
        self.drawings: list[Drawing] = []
        self.size = size

    def refresh(self, count: int) -> None:
        for _ in range(count):
            fresh = draw(sample_scene(self.rng))
            if len(self.drawings) < self.size:
                self.drawings.append(fresh)
            else:
                self.drawings[self.rng.randrange(self.size)] = fresh

    def take(self, count: int) -> list[Drawing]:
        return [self.rng.choice(self.drawings) for _ in range(count)]
