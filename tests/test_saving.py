"""Places and room are looked at before the first step; later a write that fails takes nothing else with it."""
from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import comfy.model_management
import folder_paths
import pytest
import torch

from personalize.nodes import files
from personalize.nodes.families.unet import UNet
from personalize.nodes.text.embedding_files import load_embedding
from personalize.nodes.training import run_folder
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.parts.part import Artifact
from personalize.nodes.training.parts.weights import AdapterPart
from personalize.nodes.training.preflight import Saves, _planned
from personalize.nodes.training.saving import NotSaved
from support.faults import DENIED, FULL, failing_writes
from support.trainings import learned, make_job, run, subject

pytestmark = pytest.mark.usefixtures("execute")
BOTH = (EmbeddingPart(), AdapterPart(lr=1e-2))


@pytest.fixture(autouse=True)
def quick_previews(monkeypatch):
    monkeypatch.setattr(UNet, "preview", replace(UNet.preview, steps=1))


def below_a_file(folder) -> str:
    """A folder that cannot be made, also not by root."""
    (folder / "file").write_text("")
    return str(folder / "file" / "folder")


def model_folder(monkeypatch, kind: str, folder: str) -> None:
    monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([folder], folder_paths.supported_pt_extensions))


# ------------------------------------------------------------------------------------------------ before the first step
@pytest.mark.parametrize("kind, remedy", [("output", "with another --output-directory"),
                                          ("embeddings", "name another embeddings folder first"),
                                          ("loras", "name another loras folder first")])
def test_a_folder_that_cannot_be_written_is_told_before_the_first_step(sd15, monkeypatch, tmp_path, steps_taken,
                                                                       kind, remedy):
    if kind == "output":
        monkeypatch.setattr(folder_paths, "get_output_directory", lambda: below_a_file(tmp_path))
    else:
        model_folder(monkeypatch, kind, below_a_file(tmp_path))
    with pytest.raises(OSError, match=rf"cannot write into .*is a file where a folder should be; make it.*{remedy}"):
        run(make_job(sd15, f"closed-{kind}", parts=BOTH))
    assert steps_taken == []


@pytest.mark.parametrize("changes", [{"subjects": (subject(placeholder=f"<{'w' * 300}>"),)},
                                     {"subjects": (subject(placeholder=f"<{'犬' * 90}>"),)}, {"name": "n" * 300}])
def test_a_name_that_the_disk_does_not_take_is_told_before_the_first_step(sd15, steps_taken, changes):
    with pytest.raises((OSError, ValueError), match="(?i)too long"):
        run(make_job(sd15, **{"name": "long-word", **changes}))
    assert steps_taken == []


def test_a_disk_without_enough_room_is_told_before_the_first_step(sd15, monkeypatch, steps_taken):
    job, usage = make_job(sd15, "no-room", steps=300, save_every=50, parts=BOTH), shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=10_000))
    with pytest.raises(
        OSError, match=r"will save about [\d.]+ MB on the disk of .*, where 10 KB are free; make room"
    ):
        run(job)
    assert steps_taken == []


def test_what_a_run_will_write_is_foreseen(sd15, monkeypatch):
    """Within a quarter above what is then really there, and never below."""
    seen = []
    monkeypatch.setattr("personalize.nodes.training.job.check_room",
                        lambda folder, saves: seen.append(_planned(folder, saves)))
    job = make_job(sd15, "foreseen", steps=3, save_every=1, preview_every=0, parts=BOTH)
    report = run(job).report
    paths = [Path(file) for saved in report["saved"] for file in saved["files"]]
    written = sum(path.stat().st_size for path in {*paths, *(run_path(report["run"]).iterdir())})
    assert written < sum(size for _, size in seen[0]) < 1.25 * written
    assert {path for path, _ in seen[0][:-1]} == set(paths)


def test_only_the_newest_large_state_and_the_last_large_weights_are_foreseen(sd15):
    folder = run_folder.RunFolder("large", "0" * 64)
    weights = Artifact("loras", "weights", {"x": torch.empty(run_folder.LARGEST_WEIGHTS_PER_STEP // 4 + 1)})
    planned = _planned(folder, Saves((10, 20, 30), (), (weights,), 2 * run_folder.LARGEST_STATE_KEPT_PER_STEP))
    assert [path.name for path, _ in planned] == ["weights-000030.safetensors", "records"]
    assert planned[-1][1] == pytest.approx(4 * run_folder.LARGEST_STATE_KEPT_PER_STEP, rel=0.1)


# ------------------------------------------------------------------------------------------------ one write fails
def run_path(name: str) -> Path:
    return Path(folder_paths.get_output_directory()) / "personalize" / name


def embedding_of(report: dict) -> torch.Tensor:
    return load_embedding(report["saved"][-1]["files"][0])[0]["clip_l"]


@pytest.mark.parametrize("error, name", [(FULL, "state-000001.safetensors"), (DENIED, "report.json"),
                                         (FULL, "losses.csv"), (DENIED, "preview-000001.png")])
def test_a_file_that_cannot_be_written_takes_nothing_with_it(sd15, caplog, name, error):
    job = make_job(sd15, f"one-{name}", steps=1, preview_every=2 if "preview" in name else 0)
    with failing_writes(lambda number, path: path.name == name, error) as writes:
        outcome = run(job)
    assert writes.failed and {path.name for path in writes.failed} == {name}
    there = {path.name for path in run_path(outcome.report["run"]).iterdir()}
    assert {each for each in there if not each.startswith(("preview-000000", "photograph"))} == {
        "state-000001.safetensors", "report.json", "losses.csv", "settings.json"} - {name}
    assert torch.equal(embedding_of(outcome.report), learned(outcome))
    assert f"Could not write output/personalize/{outcome.report['run']}/{name} ({os.strerror(error)})" in caplog.text
    assert 1 not in [preview["step"] for preview in outcome.report["previews"]]


def test_a_step_that_could_not_be_saved_does_not_end_the_training(sd15, caplog):
    with failing_writes(lambda number, path: "-000001." in path.name):
        report = run(make_job(sd15, "step-lost", steps=2, save_every=1)).report
    assert [saved["step"] for saved in report["saved"]] == [2] and len(report["history"]) == 2
    assert "my-dog-000001.safetensors (No space left on device)" in caplog.text


@pytest.mark.parametrize("lost", ["my-dog-000002", "weights-000002"])
def test_the_end_without_an_embedding_or_weights_says_what_is_missing(sd15, steps_taken, lost):
    job = make_job(sd15, f"end-{lost}", steps=2, parts=BOTH)
    other = {"my-dog-000002": "weights-000002", "weights-000002": "my-dog-000002"}[lost]
    with (
        failing_writes(lambda number, path: path.stem == lost),
        pytest.raises(
            NotSaved,
            match=rf"Could not write models/.*{lost}.* \(No space left on device\); make room .*"
            rf"run again.* saved in part: models/.*{other}",
        ),
    ):
        run(job)
    outcome = run(job)
    assert steps_taken == [1, 2] and torch.equal(embedding_of(outcome.report), learned(outcome))
    assert len(outcome.report["saved"][-1]["files"]) == 2 and outcome.weights


def test_a_stop_of_comfyui_stays_one_when_the_disk_is_full(sd15, after_step, steps_taken):
    after_step(2, lambda live: comfy.model_management.interrupt_current_processing())
    with failing_writes(lambda number, path: True), pytest.raises(comfy.model_management.InterruptProcessingException):
        run(make_job(sd15, "stop-full"))


@pytest.mark.parametrize("parts", [(EmbeddingPart(),), BOTH], ids=["embedding", "LoRA"])
def test_a_finished_run_is_read_without_writing(sd15, parts):
    job = make_job(sd15, f"read-{len(parts)}", save_every=2, parts=parts)
    first = run(job)
    with failing_writes(lambda number, path: True) as writes:
        again, halfway = run(job), run(replace(job, use_step=2))
    assert writes.tried == [] and torch.equal(learned(again), learned(first))
    assert again.report == first.report and halfway.report["saved"] == first.report["saved"]


# ------------------------------------------------------------------------------------------------ denied for a moment
def test_a_write_that_is_denied_for_a_moment_is_tried_again(tmp_path, monkeypatch):
    replace_, denied = os.replace, []

    def scanned(source, target):
        if len(denied) < 3:
            denied.append(source)
            raise PermissionError(DENIED, os.strerror(DENIED))
        replace_(source, target)

    monkeypatch.setattr(files, "RETRY_SECONDS", 1.0)
    monkeypatch.setattr(os, "replace", scanned)
    assert files.write_text(tmp_path / "a.txt", "new").read_text() == "new"
    assert len(denied) == 3 and [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_full_disk_is_not_tried_again(tmp_path):
    with failing_writes(lambda number, path: True, FULL, retry_seconds=60) as writes, pytest.raises(files.NotWritten):
        files.write_text(tmp_path / "a.txt", "new")
    assert len(writes.failed) == 1
