"""States, reports and weights of runs that were damaged, edited or swapped: what a training makes of them, or says."""
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save, save_file

from personalize.nodes.training.optimizer import build_optimizer, restore_optimizer
from personalize.nodes.training.parts.part import ParamGroup
from personalize.nodes.training.parts.weights import AdapterPart
from personalize.nodes.training.restoring import matching
from personalize.nodes.training.run_folder import REPORT, RunFolder, saved_report
from personalize.nodes.training.run_records import parse_history, parse_report
from support.trainings import make_job, run

pytestmark = pytest.mark.usefixtures("execute")  # the server object that runs report to

KEY = "0123456789abcdef"
EMPTY = {"run": "mine", "history": [], "previews": [], "saved": [], "message": "", "stopped": {}}


def record(step: int, **more) -> dict:
    return {"step": step, "total": 9, "loss": 0.5, "parts": {"diffusion": 0.5}, "norms": {}, "lr": {"embedding": 1.0},
            "seconds_left": 1.0} | more


@pytest.fixture
def folder(base):
    found = RunFolder("records", KEY)
    found.path.mkdir(parents=True, exist_ok=True)
    for file in found.path.iterdir():
        file.unlink()
    return found


def write_state(folder: RunFolder, number: int, tensors=None, **about) -> None:
    said = {"fingerprint": KEY, "step": str(number),
            "history": json.dumps([record(i + 1) for i in range(number)])} | about
    save_file(tensors or {"part.0.a": torch.full((2,), float(number))}, folder.state_path(number), said)


# ------------------------------------------------------------------------------------------------ states
def test_a_damaged_state_gives_way_to_the_one_before_and_is_named(folder, caplog):
    write_state(folder, 1)
    for damage in ({"history": "[" * 10_000}, {"history": "[{}]"}, {"history": '[{"step": 2}]'}, {"step": "²"},
                   {"step": "9" * 5_000}, {"history": json.dumps([record(2), record(1)])},
                   {"history": json.dumps([record(1, loss="x")])}):
        caplog.clear()
        write_state(folder, 2, **damage)
        tensors, step, history = folder.state(9)
        assert step == 1 and tensors["part.0.a"].tolist() == [1, 1] and len(history) == 1
        assert "state-000002.safetensors is damaged" in caplog.text
    write_state(folder, 2, {"part.0.a": torch.tensor([1.0, float("nan")])})
    assert folder.state(9)[1] == 1 and "holds values that are not numbers" in caplog.text
    folder.state_path(2).write_bytes(folder.state_path(2).read_bytes()[:-1])
    assert folder.state(9)[1] == 1
    write_state(folder, 2)
    assert folder.state(9)[1] == 2 and folder.state(1)[1] == 1 and folder.state(0) is None


def test_histories_of_long_trainings_are_read():
    history = [record(step) for step in range(1, 3_001)]
    assert parse_history(json.dumps(history)) == history and parse_history(" [ ] ") == []
    for odd in ("", "[", "[]x", "{}", "[1]", json.dumps([record(1, lr=[1])]), json.dumps([record(1)]) + ",",
                "[" + "[]," * 100_000 + "[]]", json.dumps([record(1, norms={"x": "y" * 70_000})]),
                json.dumps([{"step": 1, "loss": 1.0}]), '[{"step": 1e5, "loss": 1, "parts": {}}]'):
        with pytest.raises(ValueError):
            parse_history(odd)


def test_a_state_of_another_training_is_refused(sd15):
    for state in ({}, {"a": torch.ones(1)}, {"a": torch.ones(2, 1)}, {"a": torch.ones(2, dtype=torch.int64)}):
        with pytest.raises(ValueError, match="does not fit what is trained .look at a.; set resume to start over"):
            matching(state, "a", (2,))
    optimizer = build_optimizer("AdamW", [ParamGroup("a", [torch.nn.Parameter(torch.ones(2))], 1.0, None)], 0.0)
    for name in ("1.exp_avg", "x.exp_avg", "exp_avg", "-1.exp_avg", "9" * 5_000 + ".a"):
        with pytest.raises(ValueError, match="does not fit what is trained"):
            restore_optimizer(optimizer, {name: torch.ones(2)})
    with pytest.raises(ValueError, match="does not fit what is trained"):
        restore_optimizer(optimizer, {"0.exp_avg": torch.ones(3)})


# ------------------------------------------------------------------------------------------------ reports
def test_reports_are_read_as_they_were_written():
    report = EMPTY | {"history": [record(1), record(2, loss=None)], "message": "done", "more": {"a": [1]},
                      "previews": [{"step": 1, "image": {"filename": "a.png"}}],
                      "saved": [{"step": 2, "embeddings": ["embedding:a"],
                                 "files": [{"kind": "loras", "name": "a/b"}, "/a"],
                                 "part_files": [], "left_out": False}]}
    for indent in (None, 2):
        assert parse_report(json.dumps(report, indent=indent), EMPTY) == report
    assert parse_report('{"message": "a"}', EMPTY) == EMPTY | {"message": "a"} and parse_report("{}", EMPTY) == EMPTY


@pytest.mark.parametrize("odd", [
    "", "[]", "{", '{"history": {}}', '{"history": [{}]}', '{"message": 5}', '{"saved": [{"step": "1"}]}', "{1: 2}",
                                 '{"a" 1}',
    '{"saved": [{"step": 1, "files": [{"kind": "loras", "name": "../../a"}]}]}',
                                 '{"saved": [{"step": 1, "files": [5]}]}',
    '{"saved": [{"step": 1, "files": [{"kind": "loras", "name": "C:\\\\a"}]}]}',
                                 '{"previews": [{"step": 1, "image": 5}]}',
    '{"saved": [' + "[" * 5_000, '{"x": "' + "y" * 70_000 + '"}', '{"history": [' + "{}," * 50_000 + "{}]}"])
def test_a_report_that_is_none_counts_as_empty(folder, odd):
    with pytest.raises(ValueError):
        parse_report(odd, EMPTY)
    (folder.path / REPORT).write_text(odd)
    assert folder.report() == EMPTY | {"run": folder.run}


def test_a_report_cannot_name_another_run(folder):
    (folder.path / REPORT).write_text(json.dumps(EMPTY | {"run": "../../../etc"}))
    assert saved_report(folder.run)["run"] == folder.run


# ------------------------------------------------------------------------------------------------ weights of a step
def test_weights_of_a_step_that_are_damaged_or_no_numbers(sd15):
    job = make_job(sd15, "odd-weights", steps=1, parts=(AdapterPart(),))
    saved = run(job).report["saved"][-1]
    path = Path(saved["files"][-1])
    weights, whole = load_file(path), path.read_bytes()
    assert run(replace(job, use_step=1)).weights.keys() == weights.keys()
    name = next(name for name, tensor in weights.items() if tensor.ndim == 2)
    with safetensors.safe_open(path, framework="pt") as file:
        about = file.metadata()
    for content, message in ((whole[:-3], "is damaged or no file of trained weights"),
                             (save(weights | {name: weights[name] * float("nan")}, about), "NaN or infinite, look at"),
                             (save(weights | {name: weights[name].int()}, about), "of the type int32")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            run(replace(job, use_step=1))
