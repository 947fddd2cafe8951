"""What killed runs leave is put right at the next start, and what is saved holds when ComfyUI is moved."""
from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import folder_paths
import pytest
import torch

from personalize.nodes import files, locations
from personalize.nodes.families.unet import UNet
from personalize.nodes.papers.vico.parts import ImageAttentionPart, WithReferences
from personalize.nodes.run_files import files_of_run
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.parts.weights import AdapterPart
from personalize.nodes.training.run_folder import saved_report
from support.faults import failing_writes
from support.trainings import learned, make_job, run, subject

pytestmark = pytest.mark.usefixtures("execute")
BOTH = (EmbeddingPart(), AdapterPart(lr=1e-2))
HOLDER = """
import sys; from pathlib import Path
sys.path.insert(0, sys.argv[2])
from personalize.nodes import files
def write(unfinished):
    unfinished.write_bytes(b"half"); print("writing", flush=True); sys.stdin.read()
files.write_file(Path(sys.argv[1]), write)
"""


@pytest.fixture(autouse=True)
def quick_previews(monkeypatch):
    monkeypatch.setattr(UNet, "preview", replace(UNet.preview, steps=1))


class Killed(BaseException):
    """Stands for the end of the process: nothing after it is written."""


def killed_before(name: str):
    """The run is over when it is about to write a file of this name."""
    def fails(number, path):
        if path.name == name:
            dead.append(name)
            raise Killed
        return bool(dead)

    dead: list[str] = []
    return failing_writes(fails, retry_seconds=0)


def folder_of(report: dict) -> Path:
    return Path(folder_paths.get_output_directory()) / "personalize" / report["run"]


def loads(outcome, whole) -> bool:
    return torch.equal(learned(outcome), learned(whole)) and outcome.weights.keys() == whole.weights.keys()


# ------------------------------------------------------------------------------------------------ steps of killed runs
@pytest.mark.parametrize("name, steps", [("weights-000002.safetensors", [1]), ("state-000002.safetensors", [1, 2])])
def test_a_step_is_known_when_its_files_are_whole(sd15, steps_taken, name, steps):
    job = make_job(sd15, f"killed-{name}", steps=3, save_every=1, parts=BOTH)
    with killed_before(name), pytest.raises(Killed):
        run(job)
    usable = [step for step in (1, 2, 3) if _usable(replace(job, use_step=step))]
    assert usable == steps
    del steps_taken[:]
    finished = run(job)
    assert [saved["step"] for saved in finished.report["saved"]] == [1, 2, 3]
    undisturbed = run(make_job(sd15, "undisturbed", steps=3, parts=BOTH))
    assert loads(finished, undisturbed)
    assert [record["loss"] for record in finished.report["history"]] == [
        record["loss"] for record in undisturbed.report["history"]]


def _usable(job) -> bool:
    try:
        return bool(run(job).weights)
    except ValueError as error:
        assert "use_step is" in str(error)
        return False


def test_a_report_that_is_lost_or_names_deleted_files_is_mended(sd15):
    job = make_job(sd15, "mended", steps=3, save_every=1, preview_every=2)
    first = run(job).report
    report = folder_of(first) / "report.json"
    report.unlink()
    again = run(job).report
    cost = {"picture_cost": first["picture_cost"]}  # what is only in the report is lost with it
    assert {**again, **cost} == {**first, "message": again["message"]} and report.is_file()
    Path(first["saved"][0]["files"][0]).unlink()
    (folder_of(first) / "preview-000000.png").unlink()
    mended = run(job).report
    assert [saved["step"] for saved in mended["saved"]] == [2, 3]
    assert [preview["step"] for preview in mended["previews"]] == [2, 3]
    assert saved_report(first["run"]) == mended
    report.write_text('{"saved": 3}')
    assert [saved["step"] for saved in run(replace(job, use_step=2)).report["saved"]] == [2, 3]


def test_image_blocks_belong_to_a_step(sd15):
    job = make_job(sd15, "blocks", steps=2, save_every=1, parts=(EmbeddingPart(), ImageAttentionPart()),
                   recipe=WithReferences(make_job(sd15, "").recipe))
    saved = run(job).report["saved"]
    Path(saved[0]["part_files"][0]).unlink()
    (folder_of({"run": run(replace(job, use_step=2)).report["run"]}) / "report.json").unlink()
    assert run(replace(job, use_step=2)).report["saved"] == saved[1:]
    with pytest.raises(ValueError, match="use_step is 1 but this run has saved steps 2"):
        run(replace(job, use_step=1))


def test_everything_that_a_run_wrote_is_listed(sd15):
    job = make_job(sd15, "listed", steps=2, save_every=1, preview_every=2, parts=BOTH,
                   subjects=(subject(), subject(placeholder="<my-toy>")))
    report = run(job).report
    listed = files_of_run(report["run"])
    roots = [Path(folder_paths.get_folder_paths(kind)[0]) / report["run"] for kind in ("embeddings", "loras")]
    there = {path for root in (*roots, folder_of(report)) for path in root.rglob("*") if path.is_file()}
    assert {file.path for file in listed} == there and len(listed) == len(there) == 19
    assert all(file.size == file.path.stat().st_size for file in listed)
    assert sorted({(file.what, file.step) for file in listed}, key=str) == sorted(
        [(what, step) for step in (1, 2) for what in ("embedding", "weights", "state")]
        + [("preview", 0), ("preview", 2), ("record", None)], key=str)
    assert sorted({file.text for file in listed}) == ["", "<my-dog>", "<my-toy>"]


# ------------------------------------------------------------------------------------------------ leftovers
def test_leftovers_of_dead_writers_are_removed_and_those_of_living_ones_stay(sd15, tmp_path):
    """A second process holds one write open, as another server on the same models folder does, and is then killed."""
    target = Path(folder_paths.get_folder_paths("embeddings")[0]) / "other-run" / "a.safetensors"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(target), str(_importable(tmp_path))],
                          stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"writing\n"
        try:
            run(make_job(sd15, "beside-a-writer", steps=1))
            held, = target.parent.iterdir()
            assert (held / "unfinished").read_bytes() == b"half"
        finally:
            writer.kill()
    assert files.remove_leftovers([tmp_path]) == [] and held.is_dir()
    run(make_job(sd15, "after-its-end", steps=1))
    assert list(target.parent.iterdir()) == []


def test_a_run_killed_while_it_ended_leaves_nothing_after_the_next_start(sd15):
    """All steps are done then, and nothing is trained."""
    job = make_job(sd15, "killed-at-the-end", steps=1)
    left = folder_of(run(job).report) / ".personalize-0123abcd.tmp"
    left.mkdir()
    (left / "unfinished").write_bytes(b"half")
    run(job)
    assert not left.exists()


def _importable(folder: Path) -> Path:
    """The pack as a package of its own, without ComfyUI: its __init__ files would ask for it."""
    package = folder / "personalize" / "nodes"
    package.mkdir(parents=True)
    for name in (package / "__init__.py", package.parent / "__init__.py"):
        name.write_text("")
    rooms = Path(files.__file__).parent
    for name in ("files.py", "weight_files.py"):
        shutil.copy(rooms / name, package)
    shutil.copytree(rooms / "foreign", package / "foreign")
    return folder


# ------------------------------------------------------------------------------------------------ moved
def test_a_run_is_found_when_comfyui_has_been_moved(sd15, tmp_path, monkeypatch, steps_taken):
    job = make_job(sd15, "moved", steps=2, save_every=1, parts=BOTH)
    _use_base(monkeypatch, tmp_path / "old")
    first = run(job)
    (tmp_path / "old").rename(tmp_path / "new")
    _use_base(monkeypatch, tmp_path / "new")
    halfway, again = run(replace(job, use_step=1)), run(job)
    assert steps_taken == [1, 2] and loads(again, first)
    assert halfway.report["saved"][0]["files"] == [file.replace("/old/", "/new/")
                                                   for file in first.report["saved"][0]["files"]]


def test_no_saved_file_holds_a_path_of_this_machine(sd15, tmp_path, monkeypatch):
    _use_base(monkeypatch, tmp_path / "home")
    run(make_job(sd15, "plain", steps=1, parts=(*BOTH, ImageAttentionPart()),
                 recipe=WithReferences(make_job(sd15, "").recipe)))
    written = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert sorted(path.suffix for path in written) == [".csv", ".json", ".json", *[".safetensors"] * 4]
    assert [path.name for path in written if str(tmp_path).encode() in path.read_bytes()] == []


def test_a_report_of_an_earlier_version_is_read(sd15, tmp_path, monkeypatch):
    """It held whole paths: true ones, and those of a ComfyUI that was moved."""
    job = make_job(sd15, "earlier", steps=2, save_every=1)
    first = run(job).report
    path = folder_of(first) / "report.json"
    for old in (first["saved"], [{**s, "files": [f"/gone{f}" for f in s["files"]]} for s in first["saved"]]):
        path.write_text(json.dumps({**first, "saved": old}))
        assert run(replace(job, use_step=1)).report["saved"] == first["saved"]


def test_a_location_is_found_in_any_folder_of_its_kind(tmp_path, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    second.mkdir()
    (second / "a.safetensors").write_text("")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "embeddings", ([str(first), str(second)], set()))
    location = locations.location_of(second / "a.safetensors")
    assert location == {"kind": "embeddings", "name": "a.safetensors"}
    assert locations.path_at(location) == second / "a.safetensors"
    assert locations.path_at({**location, "name": "b"}) == first / "b"
    assert locations.path_at(locations.location_of(tmp_path / "else")) == tmp_path / "else"


def _use_base(monkeypatch, base: Path) -> None:
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(base / "output"))
    for kind in ("embeddings", "loras", "vico"):
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind,
                            ([str(base / "models" / kind)], folder_paths.supported_pt_extensions))
