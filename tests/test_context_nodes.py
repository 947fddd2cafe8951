"""Diverse context in the real executor: rich prompts, the contextualizer's nodes and the loss in a training."""
from __future__ import annotations

import comfy.model_management
import pytest
import torch

from personalize.nodes.locations import first_folder
from personalize.nodes.papers.context import nodes
from personalize.nodes.papers.context.files import FOLDER
from personalize.nodes.papers.context.learning import train_contextualizer
from personalize.nodes.text.prompts import parse
from personalize.nodes.text.rich_prompts import PATTERNS, SUBJECTS, kinds_of, phrases_of, rich_prompts
from support.failures import PromptFailed

SWITCHES = dict.fromkeys(("background", "action", "outfit", "style", "colour", "accessory", "viewpoint", "relation",
                          "companions"), True)


def node(of_kind, /, **inputs):
    return {"class_type": f"Personalize{of_kind}", "inputs": inputs}


# ------------------------------------------------------------------------------------------------ rich prompts
@pytest.mark.parametrize("subject", SUBJECTS)
def test_thousands_of_different_prompts_of_every_kind_that_suits(subject):
    found = rich_prompts(subject, PATTERNS, 5000)
    assert len(set(found.templates)) == 5000 and set(found.kinds) == set(kinds_of(subject))
    counts = [len(found.of([kind]).prompts) for kind in found.kinds]
    assert max(counts) - min(counts) <= 0.2 * max(counts)
    assert parse("\n".join(found.templates), "rich").templates == found.templates
    assert all("<" not in template and template == " ".join(template.split()) for template in found.templates)
    assert ("action" in found.kinds) == (subject == "animate")


@pytest.mark.parametrize("subject", SUBJECTS)
def test_no_phrase_stands_twice_and_each_reads_on(subject):
    for part, phrases in phrases_of(subject).items():
        assert len(set(phrases)) == len(phrases) >= 10, part
        assert all(phrase == phrase.strip() and not phrase.endswith((".", ",")) for phrase in phrases)
        starts = {"outfit": ("wearing ",), "style": ("a ", "an "), "viewpoint": ("a ", "an ")}.get(part)
        assert starts is None or all(phrase.startswith(starts) for phrase in phrases)


def test_a_seed_and_a_switch_choose_among_them():
    one, other = (rich_prompts("animate", ["action", "outfit"], 50, seed) for seed in (0, 1))
    assert one == rich_prompts("animate", ["action", "outfit"], 50) and one.prompts != other.prompts
    assert set(one.kinds) == {"action", "outfit"}
    assert rich_prompts("inanimate", ["action"], 50).prompts == ()


def test_lists_as_language_models_write_them():
    text = """Here are ten descriptions:

1. "a {} asleep on a tram"
2) a {} beside a well
- a {} in fog
* “a {} under stairs”
```
a {} at sea
```"""
    assert parse(text, "x").templates == ("a {} asleep on a tram", "a {} beside a well", "a {} in fog",
                                          "a {} under stairs", "a {} at sea")


def prompt_set(**changes):
    return node("PromptSet", **{"kind": "rich animate", **SWITCHES, "file": "none", "own_prompts": "", "count": 300,
                                **changes})


def test_the_prompt_set_counts_and_says_how_to_ask_for_more(execute):
    values = execute({"1": prompt_set(style=False, own_prompts="1. a {} of mine")},
                     get={"set": ["1", 0], "report": ["1", 2], "instruction": ["1", 3]}).values
    prompts = values["set"]
    assert len(prompts.prompts) == 301 and "style" not in prompts.kinds and prompts.templates[-1] == "a {} of mine"
    assert values["report"].startswith("301 prompts: ") and values["report"].endswith("1 own")
    counted = sum(int(part.split()[0]) for part in values["report"].split(": ")[1].split(", "))
    assert counted == 301
    assert "what it wears" in values["instruction"] and "paintings" not in values["instruction"]
    inanimate = execute({"1": prompt_set(kind="rich inanimate")}, get={"instruction": ["1", 3]}).values["instruction"]
    assert "what it wears" not in inanimate


# ------------------------------------------------------------------------------------------------ contextualizer
CHECKPOINT = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}}


def training(**changes):
    return node("TrainContextualizer", **{
        "clip": ["c", 1], "prompt_set": ["1", 0], "name": "tests/mine", "nouns": "dog, cat", "steps": 3,
        "batch_size": 4, "learning_rate": 1e-3, "share": 0.15, "width": 32, "depth": 1, "heads": 2, "seed": 0,
        **changes})


def test_it_is_saved_and_found_by_its_text_encoder(execute, tiny_checkpoints):
    graph = {"c": CHECKPOINT, "1": prompt_set(), "2": training()}
    made = execute(graph, get={"it": ["2", 0], "report": ["2", 1]}).values
    assert "learned from" in made["report"] and "% of the hidden words" in made["report"]
    path = first_folder(FOLDER) / "tests" / "mine.safetensors"
    assert path.is_file()
    loaded = {"c": CHECKPOINT, "2": node("LoadContextualizer", clip=["c", 1], file="of this text encoder")}
    assert execute(loaded, get={"it": ["2", 0]}).values["it"].encoder == made["it"].encoder
    other = {"c": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sdxl.safetensors"}}}
    with pytest.raises(PromptFailed, match="No contextualizer in models/contextualizers was trained on this text"):
        execute({**loaded, **other}, get={"it": ["2", 0]})
    named = {**loaded, **other, "2": node("LoadContextualizer", clip=["c", 1], file="tests/mine.safetensors")}
    with pytest.raises(PromptFailed, match="mine.safetensors was trained on another text encoder than this CLIP's"):
        execute(named, get={"it": ["2", 0]})
    path.unlink()


def test_what_was_learned_is_not_learned_again(execute, tiny_checkpoints, monkeypatch):
    graph, learned = {"c": CHECKPOINT, "1": prompt_set(), "2": training(name="tests/kept")}, []
    path = first_folder(FOLDER) / "tests" / "kept.safetensors"

    def train(*arguments, **more):
        learned.append(arguments)
        return train_contextualizer(*arguments, **more)

    monkeypatch.setattr(nodes, "train_contextualizer", train)
    first, again = (execute(graph, get={"it": ["2", 0], "report": ["2", 1]}).values for _ in range(2))
    assert len(learned) == 1 and again["report"] == first["report"]
    assert torch.equal(again["it"].weights["words.weight"], first["it"].weights["words.weight"])
    path.write_bytes(path.read_bytes()[:-8])
    for changes in ({}, {"seed": 1}, {"nouns": "dog"}):
        execute({**graph, "2": training(name="tests/kept", **changes)}, get={"it": ["2", 0]})
    assert len(learned) == 4
    path.unlink()


def test_a_stopped_training_goes_on(execute, tiny_checkpoints, monkeypatch):
    graph, steps, stops = {"c": CHECKPOINT, "1": prompt_set(), "2": training(name="tests/stopped")}, [], [2]
    whole = execute({**graph, "2": training(name="tests/whole")}, get={"it": ["2", 0]}).values["it"]

    def train(clip, prompts, how, name, each_step, **more):
        def watched(progress):
            steps.append(progress.step)
            if progress.step in stops:
                comfy.model_management.interrupt_current_processing()
            each_step(progress)

        return train_contextualizer(clip, prompts, how, name, watched, **more)

    monkeypatch.setattr(nodes, "train_contextualizer", train)
    path = first_folder(FOLDER) / "tests" / "stopped.safetensors"
    with pytest.raises(PromptFailed):
        execute(graph, get={"it": ["2", 0]})
    assert steps == [1, 2] and not path.exists()
    again = execute(graph, get={"it": ["2", 0]}).values["it"]
    assert steps == [1, 2, 3] and path.is_file()
    assert all(torch.equal(weight, whole.weights[name]) for name, weight in again.weights.items())
    path.unlink()
    steps.clear()
    with pytest.raises(PromptFailed):
        execute(graph, get={"it": ["2", 0]})
    stops.clear()
    execute({**graph, "2": training(name="tests/stopped", seed=1)}, get={"it": ["2", 0]})
    assert steps == [1, 2, 1, 2, 3]  # other inputs are another training
    for name in ("stopped", "whole"):
        path.with_name(f"{name}.safetensors").unlink()


@pytest.mark.parametrize("changes, message", [
    ({"share": 0.0}, r"share \(0\) hides no word, so that there is nothing to learn"),
    ({"share": 1.0}, r"share \(1\) hides every word"), ({"nouns": " , "}, "nouns is empty"),
    ({"width": 64, "heads": 3}, r"width \(64\) is no multiple of heads \(3\); write 63 for width"),
    ({"name": "../x"}, "would leave ComfyUI's folder")])
def test_what_cannot_be_learned_is_said(execute, changes, message, tiny_checkpoints):
    with pytest.raises(PromptFailed, match=message):
        execute({"c": CHECKPOINT, "1": prompt_set(), "2": training(**changes)}, get={"it": ["2", 0]})


def test_the_loss_joins_the_chain_and_keeps_out_at_weight_zero(execute, tiny_checkpoints):
    graph = {"c": CHECKPOINT, "1": prompt_set(), "2": training(),
             "3": node("DiffusionLoss", weight=1.0, background_weight=1.0, first_step=1, last_step=0)}

    def loss(**changes):
        inputs = {"contextualizer": ["2", 0], "prompt_set": ["1", 0], "weight": 1e-4, "share": 0.15, "first_step": 2,
                  "last_step": 9, "previous": ["3", 0], **changes}
        return execute({**graph, "4": node("MaskedWordsLoss", **inputs)}, get={"loss": ["4", 0]}).values["loss"]

    terms = loss()
    assert [(term.name, term.weight) for term in terms] == [("diffusion", 1.0), ("masked words", 1e-4)]
    assert terms[1].window == (2, 9) and terms[1].share == 0.15 and len(terms[1].templates) == 300
    assert [term.name for term in loss(weight=0.0)] == ["diffusion"]
    with pytest.raises(PromptFailed, match="hides every word"):
        loss(share=1.0)
