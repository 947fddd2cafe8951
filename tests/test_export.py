"""A step as one folder: whole, readable, and never in the place of another."""
from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import folder_paths
import pytest

from personalize.nodes.papers.vico.parts import ImageAttentionPart, WithReferences
from personalize.nodes.run_files import run_names
from personalize.nodes.training import run_folder
from personalize.nodes.training.export import export_step
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.parts.weights import AdapterPart
from personalize.nodes.training.validation import Validation
from support.faults import failing_writes
from support.prompts import node
from support.trainings import make_job, run

pytestmark = pytest.mark.usefixtures("execute")
WORKFLOW = {"nodes": [], "version": 0.4}


@pytest.fixture(autouse=True)
def no_exports():
    yield
    shutil.rmtree(exports(), ignore_errors=True)


def exports() -> Path:
    return Path(folder_paths.get_output_directory()) / "personalize" / "exports"


def trained(sd15, name, **changes):
    job = make_job(sd15, name, **{"steps": 2, "save_every": 1, "preview_every": 1, "workflow": WORKFLOW, "parts": (
        EmbeddingPart(), AdapterPart(lr=1e-2), ImageAttentionPart()), "validation": Validation(("{} in 'snow'/ice",),
                                                                                             noises=2, steps=1),
        **changes})
    return run(replace(job, recipe=WithReferences(job.recipe))).report["run"]


def test_everything_of_a_step_is_in_one_folder(sd15):
    name = trained(sd15, "exported")
    made = export_step(name, 1)
    assert made.folder == exports() / "exported-step1"
    assert made.sentence == "Step 1 is in output/personalize/exports/exported-step1."
    files = {path.relative_to(made.folder).as_posix(): path for path in made.folder.rglob("*") if path.is_file()}
    embedding, = (file for file in files if file.startswith("embeddings/"))
    assert set(files) == {
        embedding, "loras/weights-000001.safetensors", "vico/image-blocks-000001.safetensors",
        "pictures/01-my-dog-in-snow-ice.png", "pictures/02-my-dog-in-snow-ice.png", "pictures/photograph-1.jpg",
        "pictures/photograph-2.jpg", "pictures/photograph-3.jpg", "settings.json", "workflow.json", "how-to-use.txt"}
    source = Path(folder_paths.get_folder_paths("embeddings")[0]) / name / Path(embedding).name
    assert files[embedding].read_bytes() == source.read_bytes()
    assert json.loads(files["workflow.json"].read_text()) == WORKFLOW
    settings = json.loads(files["settings.json"].read_text())
    assert settings["run"] == name and settings["settings"]["steps"] == 2 and "workflow" not in settings
    assert settings["subjects"][0]["pictures"][0]["picture"] == "picture 1"
    assert f"embedding:{Path(embedding).stem} for <my-dog>" in files["how-to-use.txt"].read_text()


def test_an_export_is_no_run_and_takes_no_others_place(sd15):
    name = trained(sd15, "dogs/twice", parts=(EmbeddingPart(),))
    before = run_names()
    first, second = export_step(name, 0), export_step(name, 0)
    assert [made.folder.relative_to(exports()).as_posix() for made in (first, second)] == [
        "dogs/twice-step2", "dogs/twice-step2-2"]
    assert run_names() == before


def test_weights_that_were_left_out_are_named(sd15, monkeypatch):
    monkeypatch.setattr(run_folder, "LARGEST_WEIGHTS_PER_STEP", 1)
    name = trained(sd15, "large", parts=(EmbeddingPart(), AdapterPart(lr=1e-2)))
    made = export_step(name, 1)
    assert "Its trained weights are not there" in made.sentence and not (made.folder / "loras").exists()
    assert made.sentence.split(". ", 1)[1] in (made.folder / "how-to-use.txt").read_text()
    assert (export_step(name, 2).folder / "loras").is_dir()


def test_an_export_that_fails_leaves_nothing(sd15):
    name = trained(sd15, "full", parts=(EmbeddingPart(),))
    full = failing_writes(lambda number, path: path.name == "settings.json")
    with full, pytest.raises(OSError, match="Could not write"):
        export_step(name, 1)
    assert not (exports() / "full-step1").exists()


@pytest.mark.parametrize("run_name, step, sentence", [
    ("refused", 7, r"Step 7 of refused-\w+ has no saved file; it has steps 1, 2\."),
    ("nothing", 1, "The run 'nothing' has no saved step"), ("../out", 1, "would leave ComfyUI's folder")])
def test_what_cannot_be_exported(sd15, run_name, step, sentence):
    name = trained(sd15, "refused", parts=(EmbeddingPart(),)) if run_name == "refused" else run_name
    with pytest.raises(ValueError, match=sentence):
        export_step(name, step)


def test_the_node(sd15, execute):
    name = trained(sd15, "by-node", parts=(EmbeddingPart(),))
    made = execute({"1": node("PersonalizeExportStep", run=name, step=0)}, get={"report": ["1", 0]})
    assert made.values["report"] == "Step 2 is in output/personalize/exports/by-node-step2."
    assert made.ui["1"]["text"] == [made.values["report"]]
