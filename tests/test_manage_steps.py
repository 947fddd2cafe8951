"""Manage Steps lists and deletes all that a run wrote, and nothing else; what is left can still be used."""
from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import folder_paths
import pytest
import safetensors.torch
import torch

from personalize.nodes import files
from personalize.nodes.families.unet import UNet
from personalize.nodes.papers.vico.parts import ImageAttentionPart, WithReferences
from personalize.nodes.run_files import run_names
from personalize.nodes.text.embedding_files import save_embedding
from personalize.nodes.training.nodes_steps import PersonalizeManageSteps
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.parts.weights import AdapterPart
from personalize.nodes.training.progress import RUNS, Live, Origin
from personalize.nodes.training.run_folder import saved_report
from support.failures import PromptFailed
from support.prompts import node
from support.trainings import learned, make_job, run, subject

pytestmark = pytest.mark.usefixtures("execute")
PARTS = (EmbeddingPart(), AdapterPart(lr=1e-2))
KINDS = ("embeddings", "loras", "vico")
DELETE, KEEP, WHOLE = "delete these steps", "keep only these steps", "delete the whole run"


@pytest.fixture(autouse=True)
def quick_previews(monkeypatch):
    monkeypatch.setattr(UNet, "preview", replace(UNet.preview, steps=1))


@pytest.fixture
def manage(execute):
    """Call with a run, an action and steps; the report's lines and the prompt texts."""
    def managed(name, operation="list", step_numbers=""):
        prompt = {"1": node("PersonalizeManageSteps", run=name, operation=operation, step_numbers=step_numbers)}
        got = execute(prompt, get={"report": ["1", 0], "texts": ["1", 1]}).values
        texts = got["texts"] if isinstance(got["texts"], list) else [got["texts"]]
        return got["report"].split("\n"), texts
    return managed


def folders(name: str) -> dict[str, Path]:
    return {kind: Path(folder_paths.get_folder_paths(kind)[0]) / name for kind in KINDS} | {
        "output": Path(folder_paths.get_output_directory()) / "personalize" / name}


def there(name: str) -> list[str]:
    return sorted(f"{kind}/{path.name}" for kind, folder in folders(name).items() for path in folder.glob("*"))


def trained(sd15, name, **changes):
    job = make_job(sd15, name, **{"steps": 3, "save_every": 1, "preview_every": 3, "parts": PARTS, **changes})
    return job, run(job).report["run"]


# ------------------------------------------------------------------------------------------------ listing
def test_everything_is_listed_with_its_size(sd15, manage):
    job = make_job(sd15, "")
    _, name = trained(sd15, "manage/all", parts=(*PARTS, ImageAttentionPart()), recipe=WithReferences(job.recipe),
                      subjects=(subject(), subject(placeholder="my-dog!")))
    before = there(name)
    lines, texts = manage(name)
    assert there(name) == before and len(before) == 3 * 4 + 5 + 7, "the large state only of the last step"
    sizes = {path.name: path.stat().st_size for folder in folders(name).values() for path in folder.glob("*")}
    assert lines[0] == f"{name}: 24 files, {shown(sum(sizes.values()))}"
    assert [line.split("  ")[0] for line in lines[1:]] == [
        "step 0", *["step 1"] * 4, *["step 2"] * 4, *["step 3"] * 6, *["record"] * 9]
    for line in lines[1:]:
        stem = line.split("  ")[1].split(" ")[0].rsplit("/", 1)[1]
        assert line.endswith(f"  {shown(sizes.get(stem) or sizes[stem + '.safetensors'])}"), line
    assert len(texts) == 6 and all(re.fullmatch(rf"embedding:{name}/my-dog-[0-9a-f]{{6}}-00000[123]", t) for t in texts)
    assert sum("<my-dog>" in line for line in lines) == sum("my-dog!" in line for line in lines) == 3


def shown(size: int) -> str:
    return next((f"{size / factor:.3g} {unit}" for unit, factor in (("MB", 1e6), ("KB", 1e3)) if size >= factor),
                f"{size} bytes")


def test_a_run_is_found_by_any_of_its_files(sd15, manage, tmp_path):
    _, name = trained(sd15, "found", preview_every=0, steps=1)
    for gone in [("embeddings",), ("output",), ("embeddings", "output"), ("loras", "output")]:
        for kind in gone:
            folders(name)[kind].rename(tmp_path / kind)
        assert name in run_names()
        assert name in PersonalizeManageSteps.GET_NODE_INFO_V1()["input"]["required"]["run"][1]["options"]
        assert manage(name)[0][0].startswith(f"{name}: {len(there(name))} file")
        for kind in gone:
            (tmp_path / kind).rename(folders(name)[kind])


# ------------------------------------------------------------------------------------------------ deleting
def test_steps_are_deleted_with_all_that_belongs_to_them(sd15, manage):
    _, name = trained(sd15, "manage-some")
    lines, texts = manage(name, DELETE, "1, 3-9")
    assert re.fullmatch(rf"{name}: 10 files, [\d.]+ MB; 7 files, [\d.]+ MB deleted", lines[0])
    assert there(name) == ["embeddings/my-dog-000002.safetensors", "loras/weights-000002.safetensors",
                           "output/losses.csv", *(f"output/photograph-{number}.jpg" for number in (1, 2, 3)),
                           "output/preview-000000.png", "output/report.json", "output/settings.json",
                           "output/state-000002.safetensors"]
    assert texts == [f"embedding:{name}/my-dog-000002"] and lines[-1] == "Run again, Train trains on from step 2."


def test_what_is_left_can_be_used_and_continued(sd15, manage, steps_taken):
    job, name = trained(sd15, "manage-rest")
    second = run(replace(job, use_step=2))
    last = run(job)
    manage(name, KEEP, "2")
    report = saved_report(name)
    assert [saved["step"] for saved in report["saved"]] == [2] and report["previews"] == []
    assert [record["step"] for record in report["history"]] == [1, 2, 3]
    assert torch.equal(learned(run(replace(job, use_step=2))), learned(second))
    with pytest.raises(ValueError, match="use_step is 3 but this run has saved steps 2; choose one"):
        run(replace(job, use_step=3))
    del steps_taken[:]
    again = run(job)
    assert steps_taken == [3] and torch.equal(learned(again), learned(last))
    assert [saved["step"] for saved in again.report["saved"]] == [2, 3]
    lines, _ = manage(name, DELETE, "2-3")
    assert lines[-1] == "Run again, Train begins anew: no state is left." and "output/report.json" in there(name)
    assert not folders(name)["embeddings"].exists() and not folders(name)["loras"].exists()


def test_the_whole_run_is_deleted_and_trains_anew(sd15, manage, steps_taken):
    job, name = trained(sd15, "manage-whole")
    lines, texts = manage(name, WHOLE)
    assert re.fullmatch(rf"{name}: 0 files, 0 bytes; 17 files, [\d.]+ MB deleted", lines[0]) and len(lines) == 1
    assert not texts and not any(folder.exists() for folder in folders(name).values()) and name not in run_names()
    del steps_taken[:]
    run(job)
    assert steps_taken == [1, 2, 3]


def test_only_what_this_pack_wrote_is_deleted(sd15, manage, tmp_path):
    _, name = trained(sd15, "manage-foreign", preview_every=0)
    places = folders(name)
    outside = tmp_path / "weights-000001.safetensors"
    (places["loras"] / "weights-000001.safetensors").rename(outside)
    (places["loras"] / "weights-000001.safetensors").symlink_to(outside)
    mine = [places["embeddings"] / "foreign-000001.safetensors", places["loras"] / "other-000002.safetensors",
            places["output"] / "state-000009.safetensors"]
    for path in mine:
        safetensors.torch.save_file({"emb_params": torch.ones(1, 32)}, path)
    (places["output"] / "picture-000001.png").write_bytes(b"mine")
    beside = save_embedding("my-dog", {"clip_l": torch.ones(1, 32)},
                            {"placeholder": "<my-dog>", "run": name, "step": "1"})
    manage(name, WHOLE)
    assert there(name) == ["embeddings/foreign-000001.safetensors", "loras/other-000002.safetensors",
                           "loras/weights-000001.safetensors", "output/picture-000001.png",
                           "output/state-000009.safetensors"]
    assert outside.exists() and beside.exists()
    beside.unlink()


def test_a_folder_behind_a_link_is_left_alone(sd15, manage, tmp_path):
    _, name = trained(sd15, "manage-link", preview_every=0, steps=1)
    place = folders(name)["loras"]
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    manage(name, WHOLE)
    assert (tmp_path / "elsewhere" / "weights-000001.safetensors").exists() and not folders(name)["embeddings"].exists()
    place.unlink()


def test_leftovers_of_killed_runs_are_told_and_go_with_any_deletion(sd15, manage):
    _, name = trained(sd15, "manage-leftover", preview_every=0, steps=1)
    left = folders(name)["loras"] / ".personalize-0123abcd.tmp"
    left.mkdir()
    (left / "unfinished").write_bytes(bytes(3_000_000))
    (left / "lock").write_bytes(b"")
    assert manage(name)[0][-1] == (
        "Unfinished, being written or left by a killed run: 3 MB; any deletion removes what is left."
    )
    assert left.exists()
    assert "Unfinished files of a killed run are deleted." in manage(name, DELETE, "1")[0] and not left.exists()


def test_a_run_in_progress_is_not_touched(sd15, manage):
    """In this process, or in another one that has marked the run's folder."""
    _, name = trained(sd15, "manage-busy", preview_every=0, steps=1)
    before = there(name)
    for in_progress in (Live(Origin(name, "", None), 3), files.in_use(folders(name)["output"])):
        with in_progress:
            for action in (DELETE, KEEP, WHOLE):
                with pytest.raises(
                    PromptFailed, match=f"The run {name} is in progress; wait until it ends, or press Stop"
                ):
                    manage(name, action, "1")
            assert manage(name)[1] and set(before) <= set(there(name))
    assert RUNS.find(name) is None
    manage(name, WHOLE)
    assert there(name) == []


def test_training_marks_its_run_as_in_use(sd15, monkeypatch):
    seen, step = [], Live.step
    monkeypatch.setattr(Live, "step", lambda live, record: (
        seen.append(files.unfinished([folders(live.run)["output"]])), step(live, record)))
    _, name = trained(sd15, "manage-marked", preview_every=0, steps=1)
    assert len(seen[0]) == 1 and not files.unfinished([folders(name)["output"]])


def test_what_cannot_be_deleted_is_told_and_the_rest_is_gone(sd15, manage, monkeypatch):
    _, name = trained(sd15, "manage-denied", preview_every=0)
    unlink = Path.unlink

    def denied(path, *args, **kwargs):
        if path.name == "my-dog-000001.safetensors":
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, *args, **kwargs)

    monkeypatch.setattr(Path, "unlink", denied)
    with pytest.raises(
        PromptFailed, match=r"Could not delete .*my-dog-000001.safetensors \(Permission denied\); close"
    ):
        manage(name, DELETE, "1-2")
    assert [path for path in there(name) if re.search("-00000[12]", path)] == ["embeddings/my-dog-000001.safetensors"]
    assert [saved["step"] for saved in saved_report(name)["saved"]] == [3]


SLIPS = [
    (DELETE, "", "No steps are named"), (KEEP, " , ", "No steps are named"),
         (DELETE, "one", "'one', which is no number"),
    (KEEP, "3, 30", "no file of step 30; it has 1, 2, 3. Nothing was deleted"),
    (DELETE, "7-9", "no file of step 7-9; it has 1, 2, 3")]


def test_a_slip_deletes_nothing(sd15, manage):
    _, name = trained(sd15, "manage-slip", preview_every=0, parts=(EmbeddingPart(),))
    before = there(name)
    for action, steps, message in SLIPS:
        with pytest.raises(PromptFailed, match=message):
            manage(name, action, steps)
        assert there(name) == before


@pytest.mark.parametrize("name", ["missing", "", "..", ".", "../checkpoints", "/etc", "a\\..\\..\\b", "C:\\x"])
def test_only_runs_in_comfyuis_folders(manage, name):
    for action in ("list", WHOLE):
        with pytest.raises(PromptFailed, match="There is no run"):
            manage(name, action)
