"""A word and a set of pictures are chosen once: what a later node needs of them it is handed on."""
from __future__ import annotations

import json

import pytest

from authoring.detex_graphs import MASKED
from authoring.graphs import SUBJECT
from authoring.vico_graphs import GIRL
from personalize.nodes.papers.vico.parts import ImageAttentionPart
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.parts.weights import AdapterPart, UNetPart
from personalize.nodes.training.run_name import run_name
from support.detex_files import FILE, LORA
from support.templates import SHIPPED
from support.training_graph import graph, node, write_inputs
from support.trainings import subject


def test_train_hands_its_subjects_on_with_what_was_learned(execute, base):
    write_inputs(base)
    wanted = {"before": ["prior", 0], "concept": ["train", 0], "subject": ["train", 4]}
    values = execute(short_training(), wanted).values
    (before,), (concept,), (after,) = values["before"], values["concept"], values["subject"]
    assert after.concept is concept and after.concept.vectors and not before.concept.vectors
    assert after.pictures is before.pictures and after.prior is before.prior


def test_a_run_that_nobody_named_is_called_by_its_word_and_what_is_trained():
    part, chain = EmbeddingPart(), (EmbeddingPart(), AdapterPart("LoKr", 4, 4.0, True, 1e-4))
    subjects = (subject(placeholder="<Mein Hund!>".replace(" ", "-")), subject(placeholder="<my-cat>"))
    assert run_name(subjects, (part,)) == "Mein-Hund"
    assert run_name(subjects, chain) == "Mein-Hund-lokr"
    assert run_name(subjects, (UNetPart(),)) == "Mein-Hund-unet"
    assert run_name(subjects, (part, ImageAttentionPart())) == "Mein-Hund-vico"


def test_a_name_of_ones_own_is_kept(execute, base):
    write_inputs(base)
    runs = [execute(short_training(name=name)).ui["train"]["personalize_training"][0]["run"] for name in ("", "rex ")]
    (unnamed, key), (named, same_key) = (run.rsplit("-", 1) for run in runs)
    assert (unnamed, named) == ("my-dog", "rex") and key == same_key


@pytest.mark.parametrize("name, expected", [("", "my-dog"), ("{}-vico", "my-dog-vico"), ("dogs/{}", "dogs/my-dog")])
def test_a_file_takes_its_name_from_the_word(execute, embeddings, base, name, expected):
    write_inputs(base)
    prompt = short_training(name="saved")
    prompt["save"] = node("SaveConcept", concept=["train", 0], name=name, format="safetensors")
    assert execute(prompt).ui["save"]["text"][0].splitlines()[0] == f"embedding:{expected}"


WORDS = [SUBJECT, GIRL]
NAMES_A_FILE = {("PersonalizeSubject", "example-toy"), ("PersonalizeLoadConcept", "example-toy.safetensors"),
                ("PersonalizeLoadConcept", "example-toy-vico.safetensors"), ("PersonalizeSubject", MASKED["folder"]),
                ("PersonalizeDetexPrompt", FILE), ("PersonalizeDetexEncodePicture", FILE),
                ("LoraLoaderModelOnly", LORA)}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_template_says_each_thing_once(path):
    """The word stands on Concept and in one prompt, the pictures on one Subject; no file is named after them."""
    nodes = [each for each in json.loads(path.read_text(encoding="utf-8"))["nodes"] if each["type"] != "MarkdownNote"]
    typed = [(each["type"], value) for each in nodes if not is_text_linked(each)
             for value in each.get("widgets_values", []) if isinstance(value, str)]
    for word in WORDS:
        said = [(kind, value) for kind, value in typed if word.strip("<>") in value]
        prompts = [value for kind, value in said if value not in WORDS and (kind, value) not in NAMES_A_FILE]
        assert len(prompts) <= 1 and all(word in prompt for prompt in prompts), said
        assert said.count(("PersonalizeConcept", word)) <= 1
    said = [value for _, value in typed if value in ("toy", "girl")]
    assert len(said) == len(set(said))
    named = [each for each in nodes if each["type"] in ("PersonalizeConcept", "PersonalizeLoadConcept")]
    assert len([each for each in nodes if each["type"] == "PersonalizeSubject"]) <= len(named)


def is_text_linked(node: dict) -> bool:
    """Whether its prompt comes from another node; what the page keeps of its own is not used."""
    return any(entry["name"] in ("text", "prompt") and entry.get("link") is not None for entry in node["inputs"])


def short_training(**inputs) -> dict:
    """The graph of every node before Train, with one step and the diffusion loss alone."""
    prompt = graph()
    short = {"steps": 1, "loss": ["diffusion", 0], "recipe": ["prompts", 0], "trainable": ["embedding", 0]}
    prompt["train"]["inputs"].update(short, **inputs)
    prompt["embedding"]["inputs"].pop("previous")
    return prompt
