"""Fixtures with the real ComfyUI: loaded checkpoints, the executor in process, a server, a browser page."""
from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: threads that wait for a shared core only slow it down

import shutil
import tempfile
from pathlib import Path

import pytest

from support import inprocess, pack

BASE = Path(tempfile.mkdtemp(prefix="personalize_tests_"))
TINY_KINDS = ("sd15", "sd21", "sdxl", "sdxl_zsnr")

inprocess.start(BASE)
pack.make_importable()


def pytest_unconfigure(config):
    shutil.rmtree(BASE, ignore_errors=True)


@pytest.fixture(scope="session")
def base() -> Path:
    """ComfyUI's base directory of this test session: models/, input/, output/, ..."""
    return BASE


@pytest.fixture(scope="session")
def tiny_checkpoints() -> dict[str, str]:
    """Kind -> name for `Load Checkpoint`, of all tiny random checkpoints."""
    return {kind: inprocess.provide_checkpoint(kind, BASE) for kind in TINY_KINDS}


@pytest.fixture(scope="session")
def load_checkpoint(tiny_checkpoints):
    """Call with a kind ("sd15", "sd21", "sdxl", "sdxl_zsnr") for a checkpoint that no other test sees."""
    return lambda kind: inprocess.load_checkpoint(tiny_checkpoints[kind])


@pytest.fixture(scope="session")
def _shared_checkpoints(tiny_checkpoints):
    loaded: dict[str, inprocess.PristineCheckpoint] = {}

    def get(kind: str) -> inprocess.PristineCheckpoint:
        if kind not in loaded:
            loaded[kind] = inprocess.PristineCheckpoint(tiny_checkpoints[kind])
        return loaded[kind]

    return get


@pytest.fixture(params=TINY_KINDS)
def any_checkpoint(request, _shared_checkpoints):
    """(model, clip, vae) of each tiny kind in turn."""
    yield from _lend(_shared_checkpoints(request.param))


@pytest.fixture
def sd15(_shared_checkpoints):
    """(model, clip, vae) of the tiny SD1.5: shared by all tests, so the end of each one checks that it is unchanged."""
    yield from _lend(_shared_checkpoints("sd15"))


@pytest.fixture
def sd21(_shared_checkpoints):
    """(model, clip, vae) of the tiny SD2.1: v-prediction, clip_h."""
    yield from _lend(_shared_checkpoints("sd21"))


@pytest.fixture
def sdxl(_shared_checkpoints):
    """(model, clip, vae) of the tiny SDXL: clip_l and clip_g of different widths."""
    yield from _lend(_shared_checkpoints("sdxl"))


@pytest.fixture
def sdxl_zsnr(_shared_checkpoints):
    """(model, clip, vae) of a tiny SDXL with v-prediction and zero terminal SNR."""
    yield from _lend(_shared_checkpoints("sdxl_zsnr"))


def _lend(shared: inprocess.PristineCheckpoint):
    yield shared.loaded
    shared.check()


@pytest.fixture(scope="session")
def stock_sd15() -> str:
    """Name for `Load Checkpoint` of a random checkpoint that an unmodified ComfyUI loads as SD1.5 (275 MiB)."""
    return inprocess.provide_checkpoint("sd15_stock", BASE)


@pytest.fixture(scope="session")
def execute(tiny_checkpoints):
    """ComfyUI's PromptExecutor in process: `execute(prompt, get={"name": ["node id", slot]})`, see support/executor.py."""
    from support.executor import ComfyExecutor

    executor = ComfyExecutor()
    yield executor
    executor.close()
