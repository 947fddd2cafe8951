"""CoRe's nodes in the real executor."""
from __future__ import annotations

import pytest

from personalize.nodes.papers.core.presets import FORMULAS
from personalize.nodes.text.prompts import bundled
from support.failures import PromptFailed

BOTH = ["context embedding", "context attention"]


def loss_prompt(**changed) -> dict:
    inputs = {"prompt_set": ["1", 0], "formulas": "as released", "embedding_weight": 1.0, "attention_weight": 1.0,
              "attention": "exact", "first_step": 1, "last_step": 0}
    return {"1": {"class_type": "PersonalizePromptSet", "inputs": {
                "kind": "inanimate", "background": True, "action": True, "outfit": True, "style": True,
                "colour": True, "file": "none", "own_prompts": ""}},
            "2": {"class_type": "PersonalizeDiffusionLoss", "inputs": {
                "weight": 1.0, "background_weight": 1.0, "first_step": 1, "last_step": 0}},
            "3": {"class_type": "PersonalizeCoReLoss", "inputs": {**inputs, **changed}}}


def loss(execute, **changed):
    return execute(loss_prompt(**changed), get={"loss": ["3", 0]}).values["loss"]


@pytest.mark.smoke
def test_as_released_has_the_authors_numbers(execute):
    """λ of the authors' train.sh."""
    terms = loss(execute)
    assert [(term.name, term.weight, term.formula) for term in terms] == [
        ("context embedding", 1.5e-4, "released"), ("context attention", 0.05, "released")]
    assert all(term.templates == bundled("inanimate").templates for term in terms)
    assert all(term.window[0] == 1 and term.window[1] >= 1000000 for term in terms)
    assert not terms[1].estimate


def test_equations_bring_weights_of_their_own(execute):
    terms = loss(execute, formulas="Eqs. 3–4")
    assert [term.formula for term in terms] == ["paper", "paper"]
    assert [term.weight for term in terms] == [FORMULAS["Eqs. 3–4"].embedding, FORMULAS["Eqs. 3–4"].attention]


@pytest.mark.parametrize("formulas, formula", [("as released", "released"), ("Eqs. 3–4", "paper")])
def test_weights_multiply_those_of_the_formulas(execute, formulas, formula):
    terms = loss(execute, formulas=formulas, embedding_weight=0.5, attention_weight=2.0, attention="estimate",
                 first_step=3, last_step=9)
    assert [(t.name, t.weight, t.formula, t.window) for t in terms] == [
        (BOTH[0], 0.5 * FORMULAS[formulas].embedding, formula, (3, 9)),
        (BOTH[1], 2.0 * FORMULAS[formulas].attention, formula, (3, 9))]
    assert terms[1].estimate


def test_a_weight_of_zero_leaves_its_loss_out(execute):
    for zero, other in (("embedding_weight", BOTH[1]), ("attention_weight", BOTH[0])):
        terms = loss(execute, previous=["2", 0], **{zero: 0.0})
        assert [term.name for term in terms] == ["diffusion", other]


def test_it_joins_the_chain(execute):
    assert [t.name for t in loss(execute, previous=["2", 0])] == ["diffusion", *BOTH]


def test_values_out_of_range_are_refused(execute):
    with pytest.raises(PromptFailed, match="smaller than min"):
        loss(execute, embedding_weight=-1.0)
