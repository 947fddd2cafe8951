"""Fixtures that several test files ask for, beside those of ComfyUI itself in conftest.py."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def world(exact):
    """What self-attention swap needs, on SD1.5; see swap_world.World."""
    from .swap_world import World

    return World(exact("sd15"))


@pytest.fixture(params=["sd15", "sdxl"])
def any_world(request, exact):
    """What self-attention swap needs, on each kind."""
    from .swap_world import World

    return World(exact(request.param))


@pytest.fixture
def scene(exact):
    """What ViCo's image blocks need, on SD1.5; see vico_scene.Scene."""
    from .vico_scene import Scene

    return Scene(exact("sd15"))


@pytest.fixture(params=["sd15", "sdxl"])
def any_scene(request, exact):
    """What ViCo's image blocks need, on each kind."""
    from .vico_scene import Scene

    return Scene(exact(request.param))


@pytest.fixture
def embeddings(base) -> Iterator[Path]:
    """ComfyUI's embeddings folder of this session, emptied afterwards of what the test put there."""
    folder = base / "models" / "embeddings"
    before = set(folder.rglob("*"))
    yield folder
    for path in sorted(set(folder.rglob("*")) - before, reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.fixture
def embedding_folder(tmp_path, monkeypatch) -> Path:
    """The first of two embeddings folders, as extra_model_paths.yaml makes them; new files go into the first."""
    import folder_paths

    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "embeddings",
                        ([str(first), str(second)], folder_paths.supported_pt_extensions))
    return first


@pytest.fixture
def nan_in():
    """Call with a module and the name of a parameter: it holds no numbers until the test ends."""
    import torch

    kept = []

    def spoil(module, name):
        with torch.inference_mode():
            kept.append((module, name, module.get_parameter(name).clone()))
            module.get_parameter(name).data.fill_(float("nan"))

    yield spoil
    with torch.inference_mode():
        for module, name, original in kept:
            module.get_parameter(name).data.copy_(original)


@pytest.fixture
def steps_taken(monkeypatch):
    """Steps that are really optimised, in order."""
    from personalize.nodes.training.progress import Live

    taken = []
    step = Live.step
    monkeypatch.setattr(Live, "step", lambda live, record: (taken.append(record["step"]), step(live, record)))
    return taken


@pytest.fixture
def after_step(monkeypatch):
    """Call with a step and an action that is then done after it."""
    from personalize.nodes.training.progress import Live

    step = Live.step

    def arrange(number, action):
        def spied(live, record):
            step(live, record)
            if record["step"] == number:
                action(live)
        monkeypatch.setattr(Live, "step", spied)

    return arrange


@pytest.fixture
def start(server):
    """Call with a page and Train's inputs: opens the graph and gives the panel, before Run."""
    from .training_page import TRAIN_NODE, TrainingPanel, training_prompt

    def open_graph(ui, name: str, **changes) -> TrainingPanel:
        ui.js("prompt => window.app.loadApiJson(prompt, 'training')", training_prompt(name, **changes))
        ui.load_workflow(ui.workflow())
        return TrainingPanel(ui, TRAIN_NODE)

    yield open_graph
    server.interrupt()
