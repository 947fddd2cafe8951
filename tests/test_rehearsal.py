"""What a later step would fail at is told before the first one, and names before anything runs."""
from __future__ import annotations

import folder_paths
import pytest
import torch

from personalize.nodes.papers.core.terms import ContextAttentionLoss, ContextEmbeddingLoss
from personalize.nodes.papers.vico.terms import ReferenceAttentionLoss
from personalize.nodes.text.concept import Concept
from personalize.nodes.training.batch import Subject
from personalize.nodes.training.diffusion import DiffusionLoss
from support.failures import PromptFailed
from support.training_page import training_prompt
from support.trainings import learned, make_job, run, subject

pytestmark = pytest.mark.usefixtures("execute")
LATER = (3, 10**9)
TEMPLATES = ("a {} in the jungle",) * 6 + ("a {} beside <my-dog>",)


def context(kind, templates=TEMPLATES[:1], window=LATER):
    return kind(templates, 1.0, "paper", window=window)


def nameless() -> Subject:
    return Subject(Concept("<my-dog>", "", "cat"), subject().pictures)


@pytest.mark.parametrize("changes, message", [
    ({"terms": (DiffusionLoss(), context(ContextEmbeddingLoss)), "subjects": (nameless(),)}, "has no class words"),
    ({"terms": (DiffusionLoss(), context(ContextAttentionLoss)), "subjects": (nameless(),)}, "has no class words"),
    ({"terms": (DiffusionLoss(), context(ContextEmbeddingLoss, TEMPLATES, (1, 9)))}, "differ in more than the subject"),
    ({"terms": (DiffusionLoss(), ReferenceAttentionLoss(window=LATER))}, "connect Training References")],
    ids=["class words", "class words of attention", "a template", "no references"])
def test_what_a_later_step_lacks_is_told_before_the_first(sd15, steps_taken, changes, message):
    with pytest.raises(ValueError, match=message):
        run(make_job(sd15, "later", **{"steps": 9, **changes}))
    assert steps_taken == []


def test_a_loss_that_begins_later_changes_nothing_before_it_does(sd15):
    alone = run(make_job(sd15, "alone", steps=2, terms=(DiffusionLoss(),)))
    with_ = run(make_job(sd15, "with", steps=2, terms=(DiffusionLoss(), context(ContextEmbeddingLoss, window=(2, 2)))))
    losses = [[record["loss"] for record in outcome.report["history"]] for outcome in (alone, with_)]
    assert losses[0][0] == losses[1][0] and losses[0][1] != losses[1][1]
    assert not torch.equal(learned(alone), learned(with_))


@pytest.mark.parametrize("node, name, message", [
    ("6", "../out", "would leave ComfyUI's folder"), ("6", "n" * 300, "is too long"),
    ("7", "../out", "would leave ComfyUI's folder"), ("7", "犬" * 90, "is too long"),
    ("7", "dogs/" + "n" * 300, "is too long")], ids=["Train leaves", "Train long", "leaves", "kanji", "long"])
def test_a_name_is_refused_before_anything_runs(execute, node, name, message):
    prompt = training_prompt("named")
    prompt[node]["inputs"]["name"] = name
    with pytest.raises(PromptFailed, match=message) as failure:
        execute(prompt if node == "6" else untrained(prompt))
    assert failure.value.kind == "validation"


def test_save_concept_tells_of_a_closed_folder_before_anything_runs(execute, monkeypatch, tmp_path):
    """Only where the file is not there already: then it may be the same, and nothing needs to be written."""
    (tmp_path / "file").write_text("")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "embeddings",
                        ([str(tmp_path / "file" / "embeddings")], folder_paths.supported_pt_extensions))
    with pytest.raises(
        PromptFailed, match="cannot write into .*, where results go: .*/file is a file where"
    ) as failure:
        execute(untrained(training_prompt("closed")))
    assert failure.value.kind == "validation"


def untrained(prompt: dict) -> dict:
    """The concept goes to Save Concept at once."""
    prompt["7"]["inputs"]["concept"] = ["2", 0]
    return {"2": prompt["2"], "7": prompt["7"]}
