"""A word and a set of pictures are chosen once: what a later node needs of them it is handed on."""
from __future__ import annotations

import json

import pytest

from support.templates import SHIPPED
from support.training_graph import graph, write_inputs


def test_train_hands_its_subjects_on_with_what_was_learned(execute, base):
    write_inputs(base)
    prompt = graph()
    short = {"steps": 1, "loss": ["diffusion", 0], "recipe": ["prompts", 0], "trainable": ["embedding", 0]}
    prompt["train"]["inputs"].update(short)
    prompt["embedding"]["inputs"].pop("previous")
    wanted = {"before": ["prior", 0], "concept": ["train", 0], "subject": ["train", 4]}
    values = execute(prompt, wanted).values
    (before,), (concept,), (after,) = values["before"], values["concept"], values["subject"]
    assert after.concept is concept and after.concept.vectors and not before.concept.vectors
    assert after.pictures is before.pictures and after.prior is before.prior


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_template_takes_the_pictures_of_a_concept_once(path):
    document = json.loads(path.read_text(encoding="utf-8"))
    concepts = {"PersonalizeConcept", "PersonalizeLoadConcept"}
    named = [node for node in document["nodes"] if node["type"] in concepts]
    pictured = [node for node in document["nodes"] if node["type"] == "PersonalizeSubject"]
    assert len(pictured) <= len(named)
