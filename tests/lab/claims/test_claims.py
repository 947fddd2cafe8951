"""The machinery of the claims: cells, pairing, lines, sheets and commands."""
from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from claims import __main__ as command
from claims.harness import Harness
from claims.options import TECHNIQUES
from claims.report import results, results_by_kind, text, values_of
from claims.sheet import GAP, GREY, HEADING, LABELS, TILE, sheet
from claims.store import Cell, Drawn, Store
from claims.task import task_for
from claims.technique import AsksOracle, Method, Technique, load_technique
from claims.techniques import core
from claims.techniques.harmonize import Prompted
from claims.world import Sampling, World, digest
from miniature.subjects import public_subjects
from support.paths import TESTS

SUBJECTS = public_subjects()
QUICK = Sampling(steps=2)
LINE = re.compile(r"(claim|mean|figure) core (\S+) (\w+)((?: -?\d+\.\d\d){1,3}| \S+ \(.* in \d+ cells\))$")


@dataclass(frozen=True)
class Constant:
    """A method that draws one grey."""

    name: str = "constant"
    continues: None = None
    revision: int = 1
    grey: float = 0.4

    def draw(self, world, task, earlier) -> Drawn:
        """See Method."""
        return Drawn({number: torch.full((3, 128, 128), self.grey) for number in range(len(task.templates))},
                     {"vector": torch.arange(3.0)}, {"steps": 7.0})


@dataclass(frozen=True)
class Stopped(Constant):
    """A method that is interrupted in its midst."""

    name: str = "stopped"

    def draw(self, world, task, earlier) -> Drawn:
        """See Method."""
        raise KeyboardInterrupt


@dataclass(frozen=True)
class Brighter:
    """A method that continues another one."""

    continues: Method
    name: str = "brighter"
    revision: int = 1

    def draw(self, world, task, earlier) -> Drawn:
        """See Method."""
        return Drawn({number: picture + 0.2 for number, picture in earlier.drawn.pictures.items()})


@dataclass(frozen=True)
class Judged(Brighter, AsksOracle):
    """And looks at what the oracle said of it."""

    name: str = "judged"


# ---------------------------------------------------------------------------------------------- cells
def test_a_cell_is_made_once_and_read_as_it_was_made(world, task, tmp_path):
    said_lines: list[str] = []
    first = Harness(world, Store(tmp_path), said_lines.append).cell(Brighter(Constant()), task)
    assert [line.split()[1] for line in said_lines] == ["constant", "brighter"]
    again = Harness(world, Store(tmp_path), said_lines.append)
    found, cell = again.cell(Brighter(Constant()), task), again.find(Constant(), task)
    assert len(said_lines) == 2
    assert found.verdict == first.verdict and list(found.verdict) == [0, 1]
    assert torch.equal(found.drawn.pictures[1], first.drawn.pictures[1])
    torch.testing.assert_close(found.drawn.pictures[0], torch.full((3, 128, 128), 0.6), atol=1 / 255, rtol=0)
    assert torch.equal(cell.drawn.learned["vector"], torch.arange(3.0)) and cell.drawn.figures["steps"] == 7
    assert {"seconds", "processor_seconds", "load"} <= cell.drawn.figures.keys()


def test_every_setting_names_another_cell(world, files, task):
    method = next(method for method in load_technique("core", quick=True).methods if method.name == "TI+CoRe")
    other_weights = World(*files)
    other_weights.weights = "0" * 64
    keys = [Harness(w, Store(Path())).key(m, t) for w, m, t in (
        (world, method, task), (other_weights, method, task), (world, Constant(), task),
        (world, replace(method, learning=replace(method.learning, rate=0.1)), task),
        (world, replace(method, weighting=replace(method.weighting, attention=0.0)), task),
        (world, replace(method, estimate=True), task), (world, replace(method, revision=2), task),
        (world, method, replace(task, seed=1)), (world, method, replace(task, sampling=Sampling(steps=3))),
        (world, method, replace(task, templates=task.templates[:1])),
        (world, method, replace(task, regularization=task.regularization[1:])),
        (world, method, replace(task, pictures=task.pictures + 0.01)),
        (world, method, task_for(SUBJECTS[1], "varied", 2, 0, QUICK)),
        (world, method, task_for(SUBJECTS[0], "limited", 2, 0, QUICK)))]
    assert len(set(keys)) == len(keys)
    assert keys[0] == Harness(World(*files), Store(Path())).key(method, task_for(SUBJECTS[0], "varied", 2, 0, QUICK))


def test_another_comfyui_makes_other_cells(world, task, monkeypatch):
    harness = Harness(world, Store(Path()))
    before = harness.key(Constant(), task)
    monkeypatch.setattr("comfyui_version.__version__", "0.0.1")
    assert harness.key(Constant(), task) != before


@pytest.mark.parametrize("name", TECHNIQUES)
def test_only_what_asks_the_oracle_depends_on_it(name, world, files, task):
    other = World(*files)
    other.judge = "another"
    for method in load_technique(name, quick=True).methods:
        keys = {Harness(one, Store(Path())).key(method, task) for one in (world, other)}
        asks = name.startswith("harmonize") and isinstance(method, Prompted) or "again" in method.name \
            or method.name == "failed+test-time"
        assert len(keys) == 1 + asks, method.name


def test_a_checkpoint_is_known_by_its_tensors_not_by_what_its_metadata_says():
    tensors = {"a": torch.arange(3.0), "b": torch.zeros(2)}
    files = [save({key: tensors[key] for key in order}, metadata)
             for order, metadata in (("ab", None), ("ab", {"all": "0.8"}), ("ba", {"all": "0.9"}))]
    others = [save(other) for other in (tensors | {"b": torch.ones(2)}, {"a": tensors["a"], "c": tensors["b"]})]
    assert len({digest(file) for file in files}) == 1
    assert len({digest(file) for file in (files[0], *others, b"")}) == 4


def test_another_oracle_judges_anew_and_remakes_only_what_depends_on_it(world, files, task, tmp_path):
    made: list[str] = []
    other = World(*files)
    other.judge = "another"
    for oracle in (world, other):
        Harness(oracle, Store(tmp_path), made.append).cell(Brighter(Judged(Constant())), task)
        Harness(oracle, Store(tmp_path), made.append).cell(Brighter(Constant()), task)
    assert [line.split()[1] for line in made] == ["constant", "judged", "brighter", "brighter", "judged", "brighter"]
    assert len(list(tmp_path.rglob("*.json"))) == 8


def test_an_interrupted_cell_leaves_nothing(world, task, tmp_path):
    harness = Harness(world, Store(tmp_path), print)
    harness.cell(Constant(), task)
    with pytest.raises(KeyboardInterrupt):
        harness.cell(Stopped(), task)
    assert harness.find(Stopped(), task) is None and harness.find(Constant(), task) is not None
    assert {path.parent.name for path in tmp_path.rglob("*.*")} == {"constant"}


# ---------------------------------------------------------------------------------------------- report
def _cells(names: dict[str, float], subjects: int) -> dict:
    rng = np.random.default_rng(0)
    noise = rng.random((subjects, 5))
    return {(name, f"{s:02d}-dog", 0): Cell(Drawn({}, figures={"seconds": 10.0 + s}), {
        number: {"text": noise[s, number] + shift} for number in range(5)})
        for name, shift in names.items() for s in range(subjects)}


def test_results_are_means_over_subjects_with_paired_differences():
    technique = Technique((Constant("a"), Constant("b")), {"b": "a"})
    cells = _cells({"a": 0.0, "b": 0.25}, 12)
    found = {result.method: result for result in results(technique, cells)}
    expected = np.mean([[v["text"] for v in cell.verdict.values()]
                        for (name, *_), cell in cells.items() if name == "a"])
    assert found["a"].mean == pytest.approx(expected) and found["a"].interval.mean == pytest.approx(expected)
    difference = found["b-minus-a"].interval
    assert difference.mean == pytest.approx(0.25) and difference.high - difference.low < 1e-9
    assert found["b"].interval.high - found["b"].interval.low > 0.05


def test_kinds_of_prompts_have_means_of_their_own():
    cells = _cells({"a": 0.0}, 12)
    kinds = {f"{s:02d}-dog": {0: "place", 1: "style", 2: "style", 3: "place"} for s in range(12)}
    kinds["05-dog"] = {0: "place"}
    found = {result.measure: result for result in results_by_kind(Technique((Constant("a"),), {}), cells, kinds)}
    assert found.keys() == {"text_place", "text_style"} and found["text_style"].interval is None
    values = {subject: cell.verdict for (_, subject, _), cell in cells.items()}
    means = [np.mean([values[s][n]["text"] for n in kinds[s] if kinds[s][n] == "place"]) for s in values]
    assert found["text_place"].mean == pytest.approx(np.mean(means)) and found["text_place"].interval is not None
    task = task_for(SUBJECTS[0], "varied", 24, 0, QUICK)
    counted = [task.kinds.count(kind) for kind in ("place", "costume", "object", "style", "attribute")]
    assert counted == [6, 6, 4, 4, 4]
    assert all(("wearing" in task.templates[n]) == (kind == "costume") and task.templates[n].startswith("a painting")
               == (kind == "style") for n, kind in enumerate(task.kinds))


def test_only_pictures_that_both_methods_drew_are_compared():
    cells = _cells({"a": 0.0, "b": 0.25}, 12)
    for (name, *_), cell in cells.items():
        if name == "b":
            del cell.verdict[0], cell.verdict[3]
    del cells["b", "03-dog", 0]
    found = {r.method: r for r in results(Technique((Constant("a"), Constant("b")), {"b": "a"}), cells)}
    assert found["b-minus-a"].mean == pytest.approx(0.25) and found["b-minus-a"].subjects == 11
    assert found["b-minus-a"].interval is None and found["a"].interval is not None
    assert values_of(cells, "b", "text")["00-dog"].keys() == {(0, 1), (0, 2), (0, 4)}


@pytest.mark.parametrize("subjects", [2, 12])
def test_lines_can_be_read_by_a_program_and_few_subjects_claim_nothing(subjects):
    technique = Technique((Constant("a"), Constant("b")), {"b": "a"})
    prompts = {f"{s:02d}-dog": dict.fromkeys(range(5), "place") for s in range(subjects)}
    shown = text("core", technique, _cells({"a": 0.0, "b": 0.25}, subjects), prompts).splitlines()
    kinds = [LINE.match(line)[1] for line in shown if line.startswith(("claim", "mean", "figure"))]
    assert kinds == [("claim" if subjects == 12 else "mean")] * 5 + ["figure"] * 2
    assert ("Fewer than 12 subjects carry no claim: these are means." in shown) == (subjects < 12)


def test_a_table_says_which_differences_are_sure_and_how_many_would_be_by_chance():
    technique = Technique((Constant("a"), Constant("b"), Constant("c")), {"b": "a", "c": "a"})
    cells = _cells({"a": 0.0, "b": 0.25, "c": 0.0}, 12)
    prompts = {f"{s:02d}-dog": dict.fromkeys(range(5), "place") for s in range(12)}
    shown = text("core", technique, cells, prompts)
    rows = {line.split()[0]: line for line in shown.splitlines() if " to " in line}
    assert "**0.25** (0.25 to 0.25)" in rows["b-minus-a"] and "**" not in rows["c-minus-a"] + rows["a"]
    assert "2 differences; intervals of 0.1 leave out zero by chance, here of 1." in shown


# ---------------------------------------------------------------------------------------------- sheet
def test_sheet_holds_references_pictures_and_gaps(task):
    cells = {"a": Cell(Drawn({0: torch.full((3, 128, 128), 0.5)}), {})}
    shown = np.asarray(sheet((Constant("a"), Constant("b")), [task], lambda method, _: cells.get(method.name)))

    def tile(row: int, column: int) -> np.ndarray:
        top, left = HEADING + row * (TILE + GAP), LABELS + column * (TILE + GAP)
        return shown[top:top + TILE, left:left + TILE]

    reference = tile(0, 1).astype(float).mean((0, 1))
    np.testing.assert_allclose(reference, 255 * task.pictures[1].mean((1, 2)).numpy(), atol=2)
    assert (tile(1, 0) == 128).all() and (tile(1, 1) == GREY).all() and (tile(2, 0) == GREY).all()
    assert (shown[:HEADING, LABELS:] < 100).any() and (shown[HEADING:, :LABELS] < 100).any()


# ---------------------------------------------------------------------------------------------- command
def test_quick_run_makes_every_cell_and_the_next_one_none(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(core, "PROBED", 2)
    monkeypatch.setattr(core, "PROBED_BATCHES", 1)
    options = ["--technique", "core", "--quick", "--checkpoint", str(files[0]), "--oracle", str(files[1]),
               "--out", str(tmp_path)]
    names = [method.name for method in load_technique("core", quick=True).methods]
    assert command.main([*options, "--minutes", "0"]) == 1
    assert "No cell is there yet" in capsys.readouterr().out
    assert command.main([*options, "--methods", "class-word", "--share", "0/1"]) == 0
    assert "claim" not in capsys.readouterr().out
    assert command.main(options) == 0
    printed = capsys.readouterr().out
    made = re.findall(r"^\[ *\d+ s\] \S+ (\S+) seed 0", printed, re.MULTILINE)
    assert sorted([*made, "class-word"]) == sorted(names)
    lines = [line for line in printed.splitlines() if line.startswith(("claim ", "mean ", "figure "))]
    assert all(LINE.match(line) for line in lines), lines
    for name in set(names) - {"failed-again", "failed+test-time"}:  # these have nothing to draw where nothing failed
        assert f"\nmean core {name} identity " in printed
    assert "\nmean core TI+CoRe-minus-TI text " in printed and "figure core TI+CoRe processor_seconds" in printed
    report, picture = (tmp_path / "core-varied" / name for name in ("report.txt", "sheet-1.png"))
    assert report.read_text("utf-8") in printed and picture.stat().st_size > 10_000
    files_there = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").rglob("*.*")}
    assert command.main(options) == 0
    assert "seed 0: " not in capsys.readouterr().out
    assert files_there == {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").rglob("*.*")}


def test_estimator_gradients_are_those_of_the_terms(world, capsys, files):
    from claims import estimator

    assert estimator.main(["--checkpoint", str(files[0]), "--subjects", "1", "--steps", "2", "--points", "1",
                           "--batches", "1"]) == 0
    printed = capsys.readouterr().out
    found = {m[1]: float(m[2]) for m in re.finditer(r"^figure core_gradients (\S+ \S+) (\S+) \(.* over 1 subjects\)$",
                                                    printed, re.MULTILINE)}
    assert found.keys() >= {f"{name} {point}" for point in ("step_1", "all")
                            for name in ("attention_cosine", "core_norm_ratio", "attention_beside_diffusion")}
    assert -1 <= found["attention_cosine all"] <= 1 and found["attention_norm_ratio all"] > 0
    one, other = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])
    points = [{7: [{"exact": one, "estimate": other, "embedding": torch.zeros(2), "diffusion": one}]}]
    lines = "\n".join(estimator.figures(points))
    assert "attention_cosine step_7 0.8 (" in lines and "core_norm_ratio all 0.4 (" in lines


def test_commands_say_what_is_missing(tmp_path):
    for script, options in (("claims.py", ["--technique", "core"]), ("core_gradients.py", [])):
        asked = [sys.executable, str(TESTS / "lab" / "bench" / script), *options, "--checkpoint",
                 str(tmp_path / "none")]
        answer = subprocess.run(asked, check=False, capture_output=True, text=True)
        assert answer.returncode == 2 and "none is not there; name a trained --checkpoint" in answer.stderr
