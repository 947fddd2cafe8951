"""The text room's nodes in ComfyUI's real executor."""
from __future__ import annotations

import json
import os
import re

import pytest
import safetensors
import torch

from personalize.nodes.text.embedding_files import save_embedding
from personalize.nodes.text.layout import END, LAYOUT, LEARNED, PADDING, START
from personalize.nodes.text.prompts import bundled
from support.failures import PromptFailed
from support.layouts import spans_in, tokens_in
from support.paths import PACK
from support.prompts import loader, node
from support.vectors import rows

CONCEPT = {"placeholder": "<my-dog>", "class_words": "dog", "initial_words": "", "vector_count": 1, "embedding": "none"}
KINDS = {kind: True for kind in ("background", "action", "outfit", "style", "colour")}
SET = {"kind": "animate", **KINDS, "file": "none", "own_prompts": ""}


# ------------------------------------------------------------------------------------------------ Concept
def run_concept(execute, **changes):
    (concept,) = execute({"1": node("PersonalizeConcept", **{**CONCEPT, **changes})}, get={"c": ["1", 0]}).values["c"]
    return concept


@pytest.mark.smoke
def test_concept(execute):
    concept = run_concept(execute, placeholder=" <my-bear> ", class_words="teddy bear", vector_count=4)
    assert (concept.placeholder, concept.class_words, concept.init_words) == ("<my-bear>", "teddy bear", "teddy bear")
    assert concept.count == 4 and not concept.vectors
    assert run_concept(execute, initial_words="brown puppy").init_words == "brown puppy"


def test_concept_from_an_existing_embedding(execute, embeddings):
    save_embedding("old-dog", {"clip_l": rows(3, 32)}, {"placeholder": "<old>"})
    for name in ("old-dog.safetensors", "old-dog", "embedding:old-dog"):
        concept = run_concept(execute, embedding=name)
        assert concept.placeholder == "<my-dog>" and concept.count == 3
        assert torch.equal(concept.vectors["clip_l"], rows(3, 32))
        assert concept.settings == {"started_from": "embedding:old-dog"}


@pytest.mark.parametrize("changes, message", [
    ({"placeholder": "puppy"}, "Placeholder 'puppy' is a word the text encoder already knows"),
    ({"placeholder": "<my dog>"}, "contains a space"),
    ({"placeholder": "dog"}, "equals the class word 'dog'"),
    ({"placeholder": ""}, "Placeholder is empty"),
    ({"class_words": " "}, "Class words are empty"),
    ({"vector_count": 0}, "smaller than min"), ({"vector_count": 65}, "bigger than max"),
    ({"embedding": "missing"}, "There is no embedding 'missing'"),
    ({"embedding": "../../secret"}, "There is no embedding"),
])
def test_bad_concepts_are_refused(execute, changes, message):
    with pytest.raises(PromptFailed, match=message) as refused:
        run_concept(execute, **changes)
    assert refused.value.message.count("\n") == 0


# ------------------------------------------------------------------------------------------------ Prompt Set
def run_set(execute, **changes):
    run = execute({"1": node("PersonalizePromptSet", **{**SET, **changes})}, get={"set": ["1", 0], "list": ["1", 1]})
    return run.values["set"], run.values["list"]


@pytest.mark.smoke
def test_prompt_set(execute):
    prompts, listed = run_set(execute)
    assert prompts == bundled("animate") and tuple(listed) == prompts.templates
    prompts, _ = run_set(execute, kind="inanimate", background=False, style=False)
    assert prompts == bundled("inanimate", ["colour"])
    prompts, _ = run_set(execute, kind="universal", own_prompts="a {} of my own\nA red  {}")
    assert prompts.prompts == (*bundled("universal").prompts, ("own", "a {} of my own"))
    prompts, _ = run_set(execute, kind="pictures", **{kind: False for kind in KINDS})
    assert prompts == bundled("pictures") and len(prompts.prompts) == 81, "the switches are not about these"


def test_prompt_set_from_a_file_that_changes(execute, base):
    path = base / "input" / "sets" / "mine.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text("[action]\na {} skiing\n")
    session = execute.session()

    def prompts():
        prompt = {"1": node("PersonalizePromptSet", **{**SET, "kind": "none", "file": "sets/mine.txt"})}
        return session(prompt, {"set": ["1", 0]}).values["set"].prompts

    assert prompts() == (("action", "a {} skiing"),)
    path.write_text("a {} skating, faster\n")
    assert prompts() == (("own", "a {} skating, faster"),)
    path.write_text("a {} skating\na dog skating\n")
    with pytest.raises(PromptFailed, match="Line 2 of mine.txt has no slot: 'a dog skating'"):
        prompts()
    path.unlink()


def test_prompt_sets_chain(execute):
    prompt = {"1": node("PersonalizePromptSet", **{**SET, "kind": "none", "own_prompts": "first {}"}),
              "2": node("PersonalizePromptSet", **{**SET, "kind": "none", "own_prompts": "second {}"},
                        previous=["1", 0])}
    assert execute(prompt, get={"set": ["2", 0]}).values["set"].templates == ("first {}", "second {}")


@pytest.mark.parametrize("changes, message", [
    ({"kind": "none"}, "The Prompt Set is empty"),
    ({kind: False for kind in KINDS}, "The Prompt Set is empty"),
    ({"own_prompts": "a {} here\nno slot"}, "Line 2 of own_prompts has no slot"),
    ({"file": "../secret.txt"}, "There is no text file '../secret.txt'"),
    ({"file": "missing.txt"}, "There is no text file 'missing.txt'"),
])
def test_bad_prompt_sets_are_refused(execute, changes, message):
    with pytest.raises(PromptFailed, match=message):
        run_set(execute, **changes)


# ------------------------------------------------------------------------------------------------ Apply, Save, Load
WIDTHS = {"sd15": {"clip_l": 32}, "sd21": {"clip_h": 40}, "sdxl": {"clip_l": 32, "clip_g": 48}}


@pytest.mark.parametrize("kind", WIDTHS)
def test_save_load_apply_and_the_stock_node_agree(execute, embeddings, tiny_checkpoints, kind):
    vectors = {key: rows(2, width) for key, width in WIDTHS[kind].items()}
    start = save_embedding("round-trip", vectors, {})
    first = {"1": loader(tiny_checkpoints[kind]),
             "2": node("PersonalizeConcept", **{**CONCEPT, "embedding": start.name}),
             "3": node("PersonalizeSaveConcept", concept=["2", 0], name="")}
    run = execute(first, get={"text": ["3", 0]})
    text = run.values["text"]
    path = embeddings / "my-dog.safetensors"
    assert text == "embedding:my-dog" and run.ui["3"]["text"][0].split("\n") == [text, str(path)]
    with safetensors.safe_open(path, framework="pt") as file:
        assert file.metadata() == {"placeholder": "<my-dog>", "class_words": "dog", "init_words": "dog",
                                   "started_from": "embedding:round-trip", "personalize": "1"}
        assert all(torch.equal(file.get_tensor(key), vectors[key]) for key in vectors)
    second = {"1": first["1"],
              "2": node("PersonalizeLoadConcept", embedding="my-dog", placeholder="", class_words=""),
              "3": node("PersonalizeApplyConcept", clip=["1", 1], concept=["2", 0]),
              "4": node("CLIPTextEncode", clip=["3", 0], text="a photo of (<my-dog>:1.2), running"),
              "5": node("CLIPTextEncode", clip=["1", 1], text=f"a photo of ({text}:1.2) , running")}
    got = execute(second, get={"ours": ["4", 0], "stock": ["5", 0], "concept": ["2", 0], "word": ["2", 1]}).values
    ours, stock = got["ours"][0], got["stock"][0]
    assert torch.equal(ours[0], stock[0]) and got["word"] == "<my-dog>"
    assert ours[1]["pooled_output"] is None or torch.equal(ours[1]["pooled_output"], stock[1]["pooled_output"])
    (concept,) = got["concept"]
    assert (concept.class_words, concept.init_words, concept.count) == ("dog", "dog", 2)
    assert concept.settings == {"started_from": "embedding:round-trip"}


def test_each_save_has_a_new_name_and_is_found_without_restart(execute, embeddings, tiny_checkpoints):
    save_embedding("seed-vectors", {"clip_l": rows(1, 32)}, {})
    session, texts = execute.session(), []
    for i in range(3):
        prompt = {"1": loader(tiny_checkpoints["sd15"]),
                  "2": node("PersonalizeConcept", **{**CONCEPT, "class_words": f"dog number {i}",
                                                     "embedding": "seed-vectors"}),
                  "3": node("PersonalizeSaveConcept", concept=["2", 0], name="dogs/rex"),
                  "4": node("CLIPTextEncode", clip=["1", 1], text=["3", 0])}
        values = session.submit(prompt, {"text": ["3", 0], "cond": ["4", 0]}).result(60).values
        texts.append(values["text"])
        plain = session.submit({"1": prompt["1"], "2": node("CLIPTextEncode", clip=["1", 1], text="")},
                               {"cond": ["2", 0]}).result(60).values["cond"]
        assert not torch.equal(values["cond"][0][0], plain[0][0]), "the stock node did not find the new file"
    assert texts == ["embedding:dogs/rex", "embedding:dogs/rex-2", "embedding:dogs/rex-3"]
    listed = execute({"1": node("PersonalizeLoadConcept", embedding=os.path.join("dogs", "rex-3.safetensors"),
                                placeholder="", class_words="")}, get={"c": ["1", 0]}).values["c"]
    assert listed[0].class_words == "dog number 2"


def test_new_files_are_listed_when_the_page_asks_again(embeddings):
    from personalize.nodes.text.nodes_concept import PersonalizeConcept, PersonalizeLoadConcept
    def options(kind, name):
        return kind.GET_NODE_INFO_V1()["input"]["required"][name][1]["options"]

    files = set(options(PersonalizeLoadConcept, "embedding"))
    save_embedding("new", {"clip_l": rows(1, 32)}, {})
    save_embedding("my-dog-000050", {"clip_l": rows(1, 32)}, {}, subfolder="my-run-0123abcd")
    step = os.path.join("my-run-0123abcd", "my-dog-000050.safetensors")
    assert options(PersonalizeConcept, "embedding")[0] == "none"
    assert set(options(PersonalizeLoadConcept, "embedding")) - files == {"new.safetensors", step}


def test_a_changed_file_is_read_again(execute, embeddings):
    path = save_embedding("changing", {"clip_l": rows(1, 768)}, {})
    session = execute.session()

    def load():
        prompt = {"1": node("PersonalizeLoadConcept", embedding="changing", placeholder="", class_words="cat")}
        return session(prompt, {"c": ["1", 0]}).values["c"][0]

    first = load()
    path.unlink()
    assert save_embedding("changing", {"clip_l": rows(2, 768)}, {}) == path
    second = load()
    assert (first.count, second.count, second.placeholder, second.class_words) == (1, 2, "<changing>", "cat")


def test_load_reads_foreign_files(execute, embeddings, tiny_checkpoints):
    torch.save({"<toy>": rows(1, 32)[0], "<toy>_1": rows(2, 32)[1]}, embeddings / "toy.bin")
    prompt = {"1": loader(tiny_checkpoints["sd15"]),
              "2": node("PersonalizeLoadConcept", embedding="toy.bin", placeholder="", class_words="", clip=["1", 1])}
    (concept,) = execute(prompt, get={"c": ["2", 0]}).values["c"]
    assert concept.placeholder == "<toy>" and concept.count == 2 and set(concept.vectors) == {"clip_l"}
    prompt["2"]["inputs"]["placeholder"] = "<bear>"
    assert execute(prompt, get={"c": ["2", 0]}).values["c"][0].placeholder == "<bear>"
    del prompt["2"]["inputs"]["clip"]
    with pytest.raises(PromptFailed, match="width 768, 1024 or 1280"):
        execute(prompt, get={"c": ["2", 0]})


def test_failures_are_sentences(execute, embeddings, tiny_checkpoints, monkeypatch):
    save = {"1": node("PersonalizeConcept", **CONCEPT), "2": node("PersonalizeSaveConcept", concept=["1", 0], name="x")}
    with pytest.raises(PromptFailed, match="Concept <my-dog> has learned nothing yet"):
        execute(save)
    before = set(embeddings.iterdir())
    save_embedding("some", {"clip_l": rows(1, 32)}, {})
    save["1"]["inputs"]["embedding"] = "some"
    save["2"]["inputs"]["name"] = "../x"
    with pytest.raises(PromptFailed, match=r"The file name '\.\./x' would leave ComfyUI's folder"):
        execute(save)
    save["2"]["inputs"]["name"] = "x"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(PromptFailed, match="Could not write .*x.safetensors: No space left on device"):
            execute(save)
    assert [path.name for path in set(embeddings.iterdir()) - before] == ["some.safetensors"]
    for kind, message in (("sdxl", "vectors for clip_l but this CLIP needs clip_g"), ("sd21", "needs clip_h")):
        apply = {"0": loader(tiny_checkpoints[kind]), "1": save["1"],
                 "2": node("PersonalizeApplyConcept", clip=["0", 1], concept=["1", 0])}
        with pytest.raises(PromptFailed, match=message):
            execute(apply, get={"clip": ["2", 0]})


def test_apply_in_series_and_before_training(execute, tiny_checkpoints):
    prompt = {"1": loader(tiny_checkpoints["sdxl"]),
              "2": node("PersonalizeConcept", **CONCEPT),
              "3": node("PersonalizeConcept", **{**CONCEPT, "placeholder": "<cat>", "class_words": "cat"}),
              "4": node("PersonalizeApplyConcept", clip=["1", 1], concept=["2", 0]),
              "5": node("PersonalizeApplyConcept", clip=["4", 0], concept=["3", 0]),
              "6": node("CLIPTextEncode", clip=["5", 0], text="a <my-dog> and a <cat>"),
              "7": node("CLIPTextEncode", clip=["1", 1], text="a dog and a cat")}
    got = execute(prompt, get={"ours": ["6", 0], "words": ["7", 0]}).values
    assert torch.equal(got["ours"][0][0], got["words"][0][0])


# ------------------------------------------------------------------------------------------------ Tokens, Spans
def test_prompt_tokens(execute, tiny_checkpoints):
    prompt = {"1": loader(tiny_checkpoints["sdxl"]), "2": node("PersonalizeConcept", **{**CONCEPT, "vector_count": 2}),
              "3": node("PersonalizePromptTokens", clip=["1", 1], concept=["2", 0], prompt="a <my-dog> dog",
                        neighbours=3)}
    run = execute(prompt, get={"text": ["3", 0], "table": ["3", 1]})
    text, table = run.values["text"], run.values["table"]
    assert run.ui["3"]["text"][0] == text
    assert "<my-dog>: 2, 3" in text and "class: 4" in text and "context: 1" in text
    near = [line for line in text.split("\n") if "near to:" in line]
    assert len(near) == 4 and all("near to: dog 1.00" in line for line in near), "two vectors in each of two encoders"
    assert len(table.split("\n")) == 78


def test_encode_with_spans(execute, tiny_checkpoints):
    text = "a photo of (<my-dog>:1.2) dog, red hat"
    prompt = {"1": loader(tiny_checkpoints["sdxl"]), "2": node("PersonalizeConcept", **{**CONCEPT, "vector_count": 2}),
              "3": node("PersonalizeEncodeWithSpans", clip=["1", 1], concept=["2", 0], prompt=text,
                        words="red hat\n\nphoto of"),
              "4": node("PersonalizeApplyConcept", clip=["1", 1], concept=["2", 0]),
              "5": node("CLIPTextEncode", clip=["4", 0], text=text),
              "6": node("PersonalizeEncodeWithSpans", clip=["4", 0], prompt=text, words="")}
    got = execute(prompt, get={"ours": ["3", 0], "shown": ["3", 1], "stock": ["5", 0], "taught": ["6", 0]}).values
    (cond, options), (stock, stock_options) = got["ours"][0], got["stock"][0]
    assert torch.equal(cond, stock) and torch.equal(options["pooled_output"], stock_options["pooled_output"])
    spans = {"<my-dog>": (4, 5), "dog": (6,), "red hat": (8, 9), "photo of": (2, 3)}
    tokens = (START, "a", "photo", "of", LEARNED, LEARNED, "dog", ",", "red", "hat", END) + (PADDING,) * 66
    assert options.keys() == {"pooled_output", LAYOUT} and spans_in(options) == spans and tokens_in(options) == tokens
    assert got["shown"].split("\n") == ["<my-dog>: 4, 5", "dog: 6", "red hat: 8, 9", "photo of: 2, 3"]
    assert spans_in(got["taught"][0][1]) == {"<my-dog>": (4, 5)}
    prompt["3"]["inputs"]["words"] = "blue hat"
    with pytest.raises(PromptFailed, match="The words 'blue hat' are not in the prompt"):
        execute(prompt, get={"ours": ["3", 0]})


# ------------------------------------------------------------------------------------------------ schemas
def test_every_input_and_output_is_explained():
    from personalize.nodes.text.nodes import NODES

    assert len(NODES) == 7
    for kind in NODES:
        schema = kind.GET_SCHEMA()
        assert json.loads(json.dumps(kind.GET_NODE_INFO_V1()))["display_name"] == schema.display_name
        help_page = (PACK / "js" / "docs" / f"{schema.node_id}.md").read_text("utf-8")
        assert help_page.startswith(f"# {schema.display_name}\n")
        assert all(re.search(rf"\b{part.id}\b", help_page) for part in schema.inputs), schema.node_id
        assert all(re.search(rf"\b{part.display_name}\b", help_page) for part in schema.outputs), schema.node_id
        assert schema.category == "personalize/text" and schema.description.endswith(".")
        for part in (*schema.inputs, *schema.outputs):
            assert part.tooltip and part.tooltip[-1] not in " ,", (schema.node_id, part)
