"""The machinery of the claims: cells, pairing, lines and sheets, on the committed world or else on random networks."""
from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from claims import __main__ as command
from claims.bounds import SUBJECT, ClassWord, Truth
from claims.harness import Harness
from claims.judging import judge
from claims.options import TECHNIQUES, WEIGHTS
from claims.report import results, results_by_kind, text, values_of
from claims.sheet import GAP, GREY, HEADING, LABELS, TILE, sheet
from claims.store import Cell, Drawn, Store
from claims.task import task_for
from claims.technique import Technique, load_technique
from claims.training import Trained, subject_of, train
from claims.world import Sampling, World
from miniature.grammar import said
from miniature.subjects import public_subjects
from support.paths import TESTS

SUBJECTS = public_subjects()
QUICK = Sampling(steps=2)
LINE = re.compile(r"(claim|mean|figure) core (\S+) (\w+)((?: -?\d+\.\d\d){1,3}| \S+ \(.* in \d+ cells\))$")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    """(checkpoint, oracle): the committed ones, or random networks of the same shape."""
    committed = WEIGHTS / "miniature.safetensors", WEIGHTS / "oracle.safetensors"
    if all(file.is_file() for file in committed):
        return committed
    from safetensors.torch import save_file

    from miniature.autoencoder import initialise, new_autoencoder
    from miniature.checkpoint import save_checkpoint
    from miniature.network import new_networks
    from miniature.oracle import Oracle

    folder, networks, autoencoder = tmp_path_factory.mktemp("weights"), new_networks(3), new_autoencoder()
    torch.manual_seed(0)
    initialise(autoencoder)
    with torch.no_grad():
        for parameter in networks.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    save_checkpoint(networks, autoencoder, 0.8, folder / "miniature.safetensors", {})
    save_file(Oracle().state_dict(), folder / "oracle.safetensors")
    return folder / "miniature.safetensors", folder / "oracle.safetensors"


@pytest.fixture(scope="module")
def world(files) -> World:
    """Loaded once for all tests."""
    return World(*files)


@pytest.fixture(scope="module")
def task():
    """One subject, two prompts."""
    return task_for(SUBJECTS[0], "varied", 2, 0, QUICK)


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

    continues: Constant
    name: str = "brighter"
    revision: int = 1

    def draw(self, world, task, earlier) -> Drawn:
        """See Method."""
        return Drawn({number: earlier.drawn.pictures[number] + 0.2 for number in earlier.verdict})


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
    method = load_technique("core", quick=True).methods[4]
    other_weights = World(*files)
    other_weights.weights = "0" * 64
    keys = [Harness(w, Store(Path())).key(m, t) for w, m, t in (
        (world, method, task), (other_weights, method, task), (world, Constant(), task),
        (world, replace(method, learning=replace(method.learning, rate=0.1)), task),
        (world, replace(method, weighting=replace(method.weighting, attention=0.0)), task),
        (world, replace(method, estimate=True), task), (world, replace(method, revision=2), task),
        (world, method, replace(task, seed=1)), (world, method, replace(task, sampling=Sampling(steps=3))),
        (world, method, replace(task, templates=task.templates[:1])),
        (world, method, replace(task, pictures=task.pictures + 0.01)),
        (world, method, task_for(SUBJECTS[1], "varied", 2, 0, QUICK)),
        (world, method, task_for(SUBJECTS[0], "limited", 2, 0, QUICK)))]
    assert len(set(keys)) == len(keys)
    assert keys[0] == Harness(World(*files), Store(Path())).key(method, task_for(SUBJECTS[0], "varied", 2, 0, QUICK))


def test_another_oracle_judges_anew_and_remakes_only_what_depends_on_it(world, files, task, tmp_path):
    made: list[str] = []
    Harness(world, Store(tmp_path), made.append).cell(Brighter(Constant()), task)
    other = World(*files)
    other.judge = "another"
    Harness(other, Store(tmp_path), made.append).cell(Brighter(Constant()), task)
    assert [line.split()[1] for line in made] == ["constant", "brighter", "brighter"]
    assert len(list(tmp_path.rglob("*.json"))) == 4


def test_an_interrupted_cell_leaves_nothing(world, task, tmp_path):
    harness = Harness(world, Store(tmp_path), print)
    harness.cell(Constant(), task)
    with pytest.raises(KeyboardInterrupt):
        harness.cell(Stopped(), task)
    assert harness.find(Stopped(), task) is None and harness.find(Constant(), task) is not None
    assert {path.parent.name for path in tmp_path.rglob("*.*")} == {"constant"}


# ---------------------------------------------------------------------------------------------- methods
def test_methods_share_noise_and_training_leaves_the_checkpoint_as_it_was(world, task):
    """An embedding that learns nothing draws, bit by bit, what the class word draws."""
    from claims.techniques.core import Embedding, Learning

    before = ClassWord().draw(world, task, None)
    untouched = Embedding("TI+CoRe", Learning(2, 2, 0.0), rescaled=False).draw(world, task, None)
    learned = Embedding("TI+CoRe", Learning(2, 2, 0.1)).draw(world, task, None)
    after = ClassWord().draw(world, task, None)
    for number in (0, 1):
        assert torch.equal(before.pictures[number], untouched.pictures[number])
        assert torch.equal(before.pictures[number], after.pictures[number])
        assert not torch.equal(before.pictures[number], learned.pictures[number])
    assert not torch.equal(*task.noise(world)) and not torch.equal(task.noise(world), task.noise(world, "again"))


def test_refining_changes_only_the_vector_and_draws_only_what_failed(world, task):
    from claims.techniques.core import Again, Learning, TestTime, concept_of, learned_by
    from personalize.nodes.text.concept import initial_vectors

    start = initial_vectors(concept_of(task), world.networks.clip)
    missed = Cell(Drawn({}, start), {0: {"text": 1.0}, 1: {"text": 0.5}})
    assert torch.equal(learned_by(missed, task).vectors["clip_l"], start["clip_l"])
    tried, idle, refined = (method.draw(world, task, missed) for method in (
        Again("", Constant()), TestTime("", Constant(), learning=Learning(1, 2, 0.0)),
        TestTime("", Constant(), learning=Learning(1, 2, 0.1))))
    assert list(tried.pictures) == list(refined.pictures) == [1]
    assert torch.equal(tried.pictures[1], idle.pictures[1])
    assert not torch.equal(tried.pictures[1], refined.pictures[1])
    nothing = TestTime("", Constant()).draw(world, task, Cell(Drawn({}, start), {0: {"text": 1.0}}))
    assert nothing.pictures == {}


def test_second_stage_changes_the_model_only_while_it_draws(world, task):
    from claims.techniques.core import Learning, SecondStage, concept_of, drawn_with
    from personalize.nodes.text.concept import initial_vectors

    start = Cell(Drawn({}, initial_vectors(concept_of(task), world.networks.clip)), {})
    before = drawn_with(world, task, concept_of(task))
    changed = SecondStage("", Constant(), Learning(1, 2, 1e-2)).draw(world, task, start)
    assert not torch.equal(before[0], changed.pictures[0])
    assert torch.equal(before, drawn_with(world, task, concept_of(task)))


def test_image_blocks_are_drawn_again_from_what_their_cell_keeps(world, task, tmp_path):
    """ViCo as trained, from its files, and with references used in other ways."""
    from claims.techniques.vico import RELEASED, Learning, Look, Looking, ViCo

    vico = ViCo("ViCo", Learning(2, 2, 1e-3))
    harness, before = Harness(world, Store(tmp_path), lambda line: None), ClassWord().draw(world, task, None)
    first, again, shared, released = (harness.cell(method, task).drawn for method in (
        vico, Looking("again", vico, Look()), Looking("shared", vico, Look(halves="shared")),
        Looking("released", vico, Look(object_mask=RELEASED))))
    for number in (0, 1):
        assert torch.equal(first.pictures[number], again.pictures[number])
        assert not torch.equal(first.pictures[number], before.pictures[number])
    assert any(not torch.equal(first.pictures[n], shared.pictures[n]) for n in (0, 1))
    assert any(not torch.equal(first.pictures[n], released.pictures[n]) for n in (0, 1))
    assert first.figures["mask_iou"] == again.figures["mask_iou"] and 0 <= first.figures["mask_iou"] <= 1
    assert all(torch.equal(before.pictures[n], ClassWord().draw(world, task, None).pictures[n]) for n in (0, 1))


def test_a_second_subject_takes_turns_with_its_own_word_and_pictures(world, task):
    from claims.techniques.vico import starting_at, subject_beside
    from personalize.nodes.training.diffusion import DiffusionLoss
    from personalize.nodes.training.loop import Settings
    from personalize.nodes.vico.nodes_train import TrainingReferences, TrainViCo

    own, other, taught = subject_of(task, starting_at(task, "")), subject_beside(task), []
    assert other.concept.placeholder != own.concept.placeholder and len(other.pictures) == 5
    assert not any(torch.equal(one.variants, two.variants) for one in own.pictures for two in other.pictures)
    parts, = TrainViCo.execute(1e-3, 5e-3, "decoder", "Eq. 5").args
    trained = train(world, own, parts, (DiffusionLoss(),), Settings(2, 2), TrainingReferences.execute().args[0],
                    lambda trainer: taught.append({row.subject for row in trainer.recipe.rows(
                        trainer.subjects, trainer.step, 2, 0)["subject"]}), others=[other])
    assert taught == [{0, 1}] * 2 and trained.concept.placeholder == own.concept.placeholder
    blocks, = trained.files
    names = [own.concept.placeholder, other.concept.placeholder]
    assert json.loads(blocks.metadata["words"]) == names == [concept.placeholder for concept in trained.concepts]


def test_two_subjects_are_drawn_each_with_its_word_and_its_reference(world):
    """Words that learn nothing draw what both class words draw; blocks that learn change it."""
    from claims.techniques.vico import Learning, companion
    from claims.techniques.vico_two import TwoLooks, TwoWords, named, side_by_side

    for subject in SUBJECTS:
        task = task_for(subject, "varied", 2, 0, QUICK, side_by_side)
        other = companion(subject.identity, 0).identity.kind
        assert other != subject.identity.kind and task.kinds == ("beside", "beside")
        assert {said(prompt).second_kind for prompt in task.prompts(SUBJECT)} == {other}
        assert all(f"{SUBJECT} next to a <other> " in prompt and other not in prompt for prompt in named(task))
    classes = ClassWord().draw(world, task, None).pictures
    words, learned = (TwoWords("", Learning(1, 2, 0.0, rate)).draw(world, task, None).pictures for rate in (0.0, 0.1))
    looks = TwoLooks("", Learning(1, 2, 0.1, 0.0)).draw(world, task, None).pictures
    assert all(torch.allclose(classes[n], words[n], atol=1e-4) for n in (0, 1))
    assert not any(torch.allclose(words[n], other[n], atol=1e-3) for n in (0, 1) for other in (learned, looks))


def test_pull_of_a_term_is_measured_where_it_pulls():
    norms = {"diffusion|word": 3.0, "diffusion|blocks": 4.0, "both|word": 6.0, "both|blocks": 8.0, "one|word": 1.5,
             "one|blocks": 0.0, "none|word": 0.0, "none|blocks": 0.0}
    history = [{"norms": dict.fromkeys(norms, 9.0)}, {"norms": {}}, {"norms": norms}]
    expected = {"gradient_of_both": 2.0, "gradient_of_one": 0.5, "gradient_of_none": 0.0}
    assert Trained(None, {}, history).figures() == pytest.approx(expected)
    alone = [{"norms": {"diffusion|word": 3.0, "diffusion|blocks": 4.0}}] * 2
    assert Trained(None, {}, alone).figures() == {}


def test_unseen_reference_and_fit_of_masks(task):
    from claims.techniques.vico import mask_figures, references, unseen_scene

    for subject in SUBJECTS:
        full = task_for(subject, "varied", 2, 0, QUICK)
        scene = unseen_scene(full)
        assert scene.identity == subject.identity and scene.background not in {s.background for s in full.scenes}
    pictures, masks = references(task, 0)
    assert pictures.shape == (1, 3, 128, 128) and masks.shape == (1, 1, 128, 128)
    assert not any(torch.equal(pictures[0], picture) for picture in task.pictures)
    truth = torch.zeros(1, 1, 8, 8)
    truth[..., :4, :] = 1
    found = torch.zeros(2, 1, 4, 4)
    found[0, :, 1:3], found[1, :, :2] = 1, 1  # 4 of 12 patches, then all
    assert mask_figures({0: found[0], 1: found[1]}, truth) == {"mask_iou": pytest.approx((4 / 12 + 1) / 2)}
    assert mask_figures({}, truth) == {}


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_the_truth_shows_what_each_prompt_asks_for(subject):
    task = task_for(subject, "varied", 24, 0, QUICK)
    assert len(set(task.templates)) == 24
    for prompt, kind in zip(task.prompts(SUBJECT), task.kinds, strict=True):
        asked, scene = said(prompt), Truth._scene(task, prompt)
        assert asked.pose in (None, scene.pose) and asked.background in (None, scene.background)
        assert asked.accessory in (None, scene.accessory) and asked.style in (None, scene.style)
        assert (asked.second_kind, asked.relation) == (
            (scene.second.kind, scene.second.relation) if scene.second else (None, None))
        if kind == "attribute":
            assert (scene.identity.kind, scene.identity.pattern) == (subject.identity.kind, "plain")
            assert scene.identity.first.name == asked.first
        else:
            assert scene.identity == subject.identity


def test_looks_are_not_judged_where_the_prompt_changes_them(world):
    task = task_for(SUBJECTS[0], "varied", 24, 0, QUICK)
    verdict = judge(world, task, dict(enumerate(world.reconstruct(task.pictures[:1]).expand(24, -1, -1, -1))))
    measured = {kind: {name for number, values in verdict.items() if task.kinds[number] == kind for name in values}
                for kind in set(task.kinds)}
    assert measured.pop("attribute") == {"text", "class"}
    assert all({"identity", "colours", "colours_and_pattern"} <= names for names in measured.values())


@pytest.mark.parametrize("name", TECHNIQUES)
def test_techniques_name_methods_once_and_compare_what_exists(name):
    technique = load_technique(name, quick=False)
    names = [method.name for method in technique.methods]
    assert len(set(names)) == len(names) and not any(re.search(r"\s", name) for name in names)
    assert technique.against.keys() | set(technique.against.values()) <= set(names)


def test_references_share_place_and_pose_only_in_the_limited_set():
    varied, limited = (task_for(SUBJECTS[2], which, 24, 0, QUICK) for which in ("varied", "limited"))
    assert varied.shared("pose") is None and varied.shared("background") is None
    assert limited.shared("pose") == limited.scenes[0].pose and limited.pictures.shape == (5, 3, 128, 128)


# ---------------------------------------------------------------------------------------------- report
def _cells(names: dict[str, float], subjects: int) -> dict:
    rng = np.random.default_rng(0)
    noise = rng.random((subjects, 5))
    return {(name, f"{s:02d}-dog", 0): Cell(Drawn({}, figures={"seconds": 10.0 + s}), {
        number: {"text": noise[s, number] + shift} for number in range(5)})
        for name, shift in names.items() for s in range(subjects)}


def test_results_are_means_over_subjects_with_paired_differences():
    technique = Technique((Constant("a"), Constant("b")), {"b": "a"})
    cells = _cells({"a": 0.0, "b": 0.25}, 8)
    found = {result.method: result for result in results(technique, cells)}
    expected = np.mean([[v["text"] for v in cell.verdict.values()] for (name, *_), cell in cells.items() if name == "a"])
    assert found["a"].mean == pytest.approx(expected) and found["a"].interval.mean == pytest.approx(expected)
    difference = found["b-minus-a"].interval
    assert difference.mean == pytest.approx(0.25) and difference.high - difference.low < 1e-9
    assert found["b"].interval.high - found["b"].interval.low > 0.05


def test_kinds_of_prompts_have_means_of_their_own():
    cells = _cells({"a": 0.0}, 8)
    kinds = {f"{s:02d}-dog": {0: "place", 1: "style", 2: "style", 3: "place"} for s in range(8)}
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
    cells = _cells({"a": 0.0, "b": 0.25}, 8)
    for (name, *_), cell in cells.items():
        if name == "b":
            del cell.verdict[0], cell.verdict[3]
    del cells["b", "03-dog", 0]
    found = {r.method: r for r in results(Technique((Constant("a"), Constant("b")), {"b": "a"}), cells)}
    assert found["b-minus-a"].mean == pytest.approx(0.25) and found["b-minus-a"].subjects == 7
    assert found["b-minus-a"].interval is None and found["a"].interval is not None
    assert values_of(cells, "b", "text")["00-dog"].keys() == {(0, 1), (0, 2), (0, 4)}


@pytest.mark.parametrize("subjects", [2, 8])
def test_lines_can_be_read_by_a_program_and_few_subjects_claim_nothing(subjects):
    technique = Technique((Constant("a"), Constant("b")), {"b": "a"})
    prompts = {f"{s:02d}-dog": dict.fromkeys(range(5), "place") for s in range(subjects)}
    shown = text("core", technique, _cells({"a": 0.0, "b": 0.25}, subjects), prompts).splitlines()
    kinds = [LINE.match(line)[1] for line in shown if line.startswith(("claim", "mean", "figure"))]
    assert kinds == [("claim" if subjects == 8 else "mean")] * 5 + ["figure"] * 2
    assert ("Fewer than 8 subjects carry no claim: these are means." in shown) == (subjects < 8)


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
def test_quick_run_makes_every_cell_and_the_next_one_none(files, tmp_path, capsys):
    options = ["--technique", "core", "--quick", "--checkpoint", str(files[0]), "--oracle", str(files[1]),
               "--out", str(tmp_path)]
    names = [method.name for method in load_technique("core", quick=True).methods]
    assert command.main([*options, "--minutes", "0"]) == 1
    assert "No cell is there yet" in capsys.readouterr().out
    assert command.main([*options, "--methods", "class-word", "--share", "0/1"]) == 0
    assert "claim" not in capsys.readouterr().out
    assert command.main(options) == 0
    printed = capsys.readouterr().out
    made = re.findall(r"^\[ *\d+ s\] \S+ (\S+) seed 0", printed, re.M)
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
                                                    printed, re.M)}
    assert found.keys() >= {f"{name} {point}" for point in ("step_1", "all")
                            for name in ("attention_cosine", "core_norm_ratio", "attention_beside_diffusion")}
    assert -1 <= found["attention_cosine all"] <= 1 and found["attention_norm_ratio all"] > 0
    one, other = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])
    points = [{7: [{"exact": one, "estimate": other, "embedding": torch.zeros(2), "diffusion": one}]}]
    lines = "\n".join(estimator.figures(points))
    assert "attention_cosine step_7 0.8 (" in lines and "core_norm_ratio all 0.4 (" in lines


def test_commands_say_what_is_missing(tmp_path):
    for script, options in (("claims.py", ["--technique", "core"]), ("core_gradients.py", [])):
        asked = [sys.executable, str(TESTS / "bench" / script), *options, "--checkpoint", str(tmp_path / "none")]
        answer = subprocess.run(asked, capture_output=True, text=True)
        assert answer.returncode == 2 and "none is not there; name a trained --checkpoint" in answer.stderr
