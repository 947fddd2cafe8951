"""Fixtures with the real ComfyUI: loaded checkpoints, the executor in process, a server, a browser page."""
from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: threads that wait for a shared core only slow it down

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from environment import chromium
from support import inprocess, pack, packs
from support.paths import PACK, TESTS

pytest_plugins = ["support.fixtures"]
BASE = Path(tempfile.mkdtemp(prefix="personalize_tests_"))
IN_CI = os.environ.get("CI", "").lower() in ("1", "true")
NOT_RUN = pytest.StashKey[list]()
WITHOUT_PACKS = pytest.StashKey[dict]()
TINY_KINDS = ("sd15", "sd21", "sdxl", "sdxl_zsnr")
TRANSFORMERS = ("z_image", "lumina2")

inprocess.start(BASE)
pack.make_importable()


def pytest_addoption(parser):
    parser.addoption("--packs", type=lambda path: Path(path).resolve(), default=None,
                     help="folder with checkouts of other packs, for the tests that run them beside this one")
    parser.addoption("--every", type=int, default=1, metavar="N", help="of the tests marked by_hand only every Nth")


def pytest_unconfigure(config):
    shutil.rmtree(BASE, ignore_errors=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Mark tests by the fixtures they use, and set aside those that need a browser where there is none."""
    for item in items:
        for mark in ("server", "browser"):
            if mark in item.fixturenames or mark == "server" and "start_server" in item.fixturenames:
                item.add_marker(mark)
        if {"exact", "any_exact"} & set(item.fixturenames):
            item.add_marker("by_hand")
    _thin_out(items, config.getoption("every"))
    _leave_out_packs(config, items)
    if not IN_CI and chromium.find() is None:
        config.stash[NOT_RUN] = [item for item in items if item.get_closest_marker("browser")]
        items[:] = [item for item in items if not item.get_closest_marker("browser")]


def _thin_out(items, every: int) -> None:
    by_hand = [item for item in items if item.get_closest_marker("by_hand")]
    kept = set(by_hand[::every])
    items[:] = [item for item in items if item in kept or not item.get_closest_marker("by_hand")]


def _leave_out_packs(config, items):
    """Set aside the tests marked with a pack that is not there."""
    folder = config.getoption("packs")
    left_out, kept = {}, []
    for item in items:
        reasons = [packs.why_not(mark.args[0], folder) for mark in item.iter_markers("pack")]
        if any(reasons):
            left_out.setdefault(next(filter(None, reasons)), []).append(item)
        else:
            kept.append(item)
    config.stash[WITHOUT_PACKS] = {reason: len(those) for reason, those in left_out.items()}
    config.hook.pytest_deselected(items=[item for those in left_out.values() for item in those])
    items[:] = kept


def pytest_terminal_summary(terminalreporter, config):
    without_packs = config.stash.get(WITHOUT_PACKS, {})
    if without_packs:
        terminalreporter.section(f"{sum(without_packs.values())} tests of other packs were not run")
        for reason, count in without_packs.items():
            terminalreporter.write_line(f"{count} of {reason}")
    not_run = config.stash.get(NOT_RUN, [])
    if not_run:
        terminalreporter.section(f"{len(not_run)} browser tests were NOT run")
        terminalreporter.write_line("\n".join(item.nodeid for item in not_run))
        terminalreporter.write_line(f"They need Chromium, Chrome or Edge: {chromium.install_command()}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """In CI a test that was skipped is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if IN_CI and reporter.stats.get("skipped") and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter.write_line("\nIn CI nothing may be skipped.", red=True)


@pytest.fixture(scope="session")
def base() -> Path:
    """ComfyUI's base directory of this test session: models/, input/, output/, ..."""
    return BASE


@pytest.fixture
def folder(base) -> Iterator[Path]:
    """A new folder `dogs` in ComfyUI's input folder."""
    path = base / "input" / "dogs"
    path.mkdir()
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def tiny_checkpoints() -> dict[str, str]:
    """Kind -> name for `Load Checkpoint`, of all tiny random checkpoints."""
    return {kind: inprocess.provide_checkpoint(kind, BASE) for kind in (*TINY_KINDS, *TRANSFORMERS)}


@pytest.fixture(scope="session")
def load_checkpoint(tiny_checkpoints):
    """Call with a kind ("sd15", "sd21", "sdxl", "sdxl_zsnr", "z_image", "lumina2") for a checkpoint that no other test
    sees."""
    return lambda kind: inprocess.load_checkpoint(tiny_checkpoints[kind])


@pytest.fixture(scope="session")
def _shared_checkpoints(tiny_checkpoints):
    loaded: dict[tuple, inprocess.PristineCheckpoint] = {}

    def get(kind: str, dtype=None) -> inprocess.PristineCheckpoint:
        if (kind, dtype) not in loaded:
            loaded[kind, dtype] = inprocess.PristineCheckpoint(tiny_checkpoints[kind], dtype)
        return loaded[kind, dtype]

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


@pytest.fixture
def z_image(_shared_checkpoints):
    """(model, clip, vae) of the tiny Z-Image: flow, Qwen3."""
    yield from _lend(_shared_checkpoints("z_image"))


@pytest.fixture(params=TRANSFORMERS)
def any_transformer(request, _shared_checkpoints):
    """(model, clip, vae) of the tiny Z-Image and of the tiny Lumina 2, whose encoder is Gemma."""
    yield from _lend(_shared_checkpoints(request.param))


@pytest.fixture(params=TINY_KINDS)
def any_exact(request, _shared_checkpoints):
    """(model, clip, vae) of each tiny kind in turn, the U-Net computing in float64."""
    yield from _lend(_shared_checkpoints(request.param, torch.float64))


@pytest.fixture
def exact(_shared_checkpoints):
    """Call with a kind for (model, clip, vae) whose U-Net computes in float64, so that what two ways of computing one
    thing differ by is their formulas', not their processor's rounding. The end of the test checks them as `sd15`'s."""
    lent = []

    def lend(kind: str):
        lent.append(_shared_checkpoints(kind, torch.float64))
        return lent[-1].loaded

    yield lend
    for shared in lent:
        shared.check()


def _lend(shared: inprocess.PristineCheckpoint):
    yield shared.loaded
    shared.check()


@pytest.fixture(scope="session")
def stock_sd15() -> str:
    """Name for `Load Checkpoint` of a random checkpoint that an unmodified ComfyUI loads as SD1.5 (275 MiB)."""
    return inprocess.provide_checkpoint("sd15_stock", BASE)


@pytest.fixture(scope="session")
def execute(tiny_checkpoints):
    """ComfyUI's PromptExecutor in process: `execute(prompt, get={"name": ["node id", slot]})`, see
    support/executor.py."""
    from support.executor import ComfyExecutor

    executor = ComfyExecutor()
    yield executor
    executor.close()


@pytest.fixture
def beside_packs(request, execute):
    """`execute` with the packs that the test is marked with: @pytest.mark.pack("ComfyUI-ppm"). They stay loaded."""
    for mark in request.node.iter_markers("pack"):
        packs.load(mark.args[0], request.config.getoption("packs"), BASE, execute)
    return execute


@pytest.fixture(scope="session")
def node_classes(execute) -> list[type]:
    """Every node class of the pack, registered in process."""
    from personalize.nodes import node_classes

    return node_classes()


@pytest.fixture(scope="session")
def start_server(tmp_path_factory):
    """Call for a server of its own: `start_server(packs={folder name: folder})`; all are stopped at the end.

    base: its base directory, a new one if not given; more: as for ComfyServer.
    """
    from support.server import ComfyServer

    servers = []

    def start(packs: dict[str, Path], arguments: tuple[str, ...] = (), base: Path | None = None, **more) -> ComfyServer:
        servers.append(ComfyServer(base or tmp_path_factory.mktemp("comfyui"), packs, arguments, **more))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def server(start_server):
    """The real server with the pack linked into custom_nodes and the tiny checkpoints in models/."""
    started = start_server({"personalize": PACK, "tiny_models": TESTS / "tiny"})
    for kind in TINY_KINDS:
        inprocess.provide_checkpoint(kind, started.base)
    return started


@pytest.fixture(scope="session")
def browser():
    """A running headless browser. In CI it must exist; elsewhere tests that need it are listed as not run."""
    from support.browser import launch

    executable = chromium.find()
    if executable is None:
        pytest.fail(f"no browser was found; install one with: {chromium.install_command()}")
    with launch(executable) as running:
        yield running


@pytest.fixture(scope="module", params=["classic", "nodes2"])
def page(request, browser, server):
    """One page for all tests of a file, with classic nodes and with Nodes 2.0: opening it takes longer than most of
    them."""
    yield from _open(browser, server, nodes2=request.param == "nodes2")


@pytest.fixture
def ui(browser, server):
    """ComfyUI's page with classic nodes, new for each test; unexplained console messages fail it."""
    yield from _open(browser, server, nodes2=False)


@pytest.fixture(params=["classic", "nodes2"])
def any_ui(request, browser, server):
    """ComfyUI's page, with classic nodes and with Nodes 2.0."""
    yield from _open(browser, server, nodes2=request.param == "nodes2")


def _open(browser, server, nodes2: bool):
    from support.browser import open_page

    with open_page(browser, server, nodes2) as page:
        yield page
        assert page.unexpected_messages() == []
