"""CoRe's nodes in the real executor."""
from __future__ import annotations

import pytest

from personalize.nodes.papers.core.presets import PRESETS
from personalize.nodes.text.prompts import bundled
from support.failures import PromptFailed

BOTH = ["context embedding", "context attention"]


def loss_prompt(**changed) -> dict:
    inputs = {"prompt_set": ["1", 0], "preset": "as released", "formulas": "as released", "lambda_emb": 0.5,
              "lambda_attn": 2.0, "attention": "exact", "first_step": 1, "last_step": 0}
    return {"1": {"class_type": "PersonalizePromptSet", "inputs": {
                "subject": "inanimate", "background": True, "action": True, "outfit": True, "style": True,
                "colour": True, "file": "none", "own_prompts": ""}},
            "2": {"class_type": "PersonalizeDiffusionLoss", "inputs": {
                "weight": 1.0, "background": 1.0, "first_step": 1, "last_step": 0}},
            "3": {"class_type": "PersonalizeCoReLoss", "inputs": {**inputs, **changed}}}


def loss(execute, **changed):
    return execute(loss_prompt(**changed), get={"loss": ["3", 0]}).values["loss"]


@pytest.mark.smoke
def test_as_released_has_the_authors_numbers(execute):
    """λ of the authors' train.sh; custom's numbers do not count."""
    terms = loss(execute)
    assert [(term.name, term.weight, term.formula) for term in terms] == [
        ("context embedding", 1.5e-4, "released"), ("context attention", 0.05, "released")]
    assert all(term.templates == bundled("inanimate").templates for term in terms)
    assert all(term.window[0] == 1 and term.window[1] >= 1000000 for term in terms)
    assert not terms[1].estimate


def test_equations_bring_weights_of_their_own(execute):
    terms = loss(execute, preset="Eqs. 3–4")
    assert [term.formula for term in terms] == ["paper", "paper"]
    assert [term.weight for term in terms] == [PRESETS["Eqs. 3–4"].embedding, PRESETS["Eqs. 3–4"].attention]


@pytest.mark.parametrize("formulas, formula", [("as released", "released"), ("Eqs. 3–4", "paper")])
def test_custom(execute, formulas, formula):
    terms = loss(execute, preset="custom", formulas=formulas, attention="estimate", first_step=3, last_step=9)
    assert [(t.name, t.weight, t.formula, t.window) for t in terms] == [
        (BOTH[0], 0.5, formula, (3, 9)), (BOTH[1], 2.0, formula, (3, 9))]
    assert terms[1].estimate


def test_a_weight_of_zero_leaves_its_loss_out(execute):
    for zero, other in (("lambda_emb", BOTH[1]), ("lambda_attn", BOTH[0])):
        terms = loss(execute, preset="custom", previous=["2", 0], **{zero: 0.0})
        assert [term.name for term in terms] == ["diffusion", other]


def test_it_joins_the_chain(execute):
    assert [t.name for t in loss(execute, previous=["2", 0])] == ["diffusion", *BOTH]


def test_values_out_of_range_are_refused(execute):
    with pytest.raises(PromptFailed, match="smaller than min"):
        loss(execute, lambda_emb=-1.0)
