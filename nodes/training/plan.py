"""What is trained, on what, and how."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .batch import Recipe, Subject
from .interfaces import LossTerm
from .parts.part import TrainablePart


@dataclass(frozen=True)
class Settings:
    """What the loop itself needs to know.

    steps: optimiser steps in all. batch_size: rows B of a step. micro_batch: rows computed at once; 0 for all that
    fit. optimizer, weight_decay: of torch.optim. schedule, warmup_steps: of the learning rate. clip_gradients: largest
    Euclidean norm of all gradients together, 0 for none. seed: of every draw. checkpointing: recompute U-Net blocks.
    """

    steps: int
    batch_size: int = 1
    micro_batch: int = 0
    optimizer: str = "AdamW"
    weight_decay: float = 0.01
    schedule: str = "constant"
    warmup_steps: int = 0
    clip_gradients: float = 0.0
    seed: int = 0
    checkpointing: bool = False
    NOT_IN_KEY = ("micro_batch", "checkpointing")  # how it is computed, not what


@dataclass(frozen=True)
class Plan:
    """Everything that the result of a training depends on.

    vae: encodes the pictures. precision: what the U-Net computes in, one of session.PRECISIONS.
    """

    model: Any
    clip: Any
    vae: Any
    subjects: tuple[Subject, ...]
    parts: tuple[TrainablePart, ...]
    terms: tuple[LossTerm, ...]
    recipe: Recipe
    settings: Settings
    precision: str = "auto"
