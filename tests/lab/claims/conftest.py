"""The miniature world, loaded once for all tests of the claims."""
from __future__ import annotations

from pathlib import Path

import pytest

from claims.options import WEIGHTS
from claims.task import Task, task_for
from claims.world import Sampling, World
from miniature.subjects import public_subjects


@pytest.fixture(scope="session")
def files() -> tuple[Path, Path]:
    """(checkpoint, oracle)."""
    return WEIGHTS / "miniature.safetensors", WEIGHTS / "oracle.safetensors"


@pytest.fixture(scope="session")
def world(files) -> World:
    """Loaded once for all tests."""
    return World(*files)


@pytest.fixture(scope="session")
def task() -> Task:
    """One subject, two prompts."""
    return task_for(public_subjects()[0], "varied", 2, 0, Sampling(steps=2))
