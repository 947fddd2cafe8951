"""Prompt sets: the bundled ones are well-formed, and own lines are read or refused with their line number."""
from __future__ import annotations

import ast
import json
import tracemalloc
from pathlib import Path

import pytest

from authoring.catalog import template
from personalize.nodes.text import prompts
from personalize.nodes.text.prompts import BUNDLED, PromptSet, bundled, join_sets, parse, read_prompts
from support.prompts_by_hand import words_to_ids


@pytest.mark.parametrize("subject, about", [("animate", 100), ("inanimate", 100), ("universal", 50), ("pictures", 81)])
@pytest.mark.smoke
def test_bundled_sets(subject, about):
    found = bundled(subject)
    assert found.kinds == BUNDLED[subject] and len(found.prompts) == about
    text = (Path(prompts.__file__).parent / "prompt_sets" / f"{subject}.txt").read_text("utf-8")
    lines = [line for line in text.splitlines() if line and line[0] not in "#["]
    assert list(found.templates) == lines, "a bundled file repeats a prompt"
    for prompt in found.templates:
        words = prompt.replace("{}", " ").split()
        assert prompt.count("{}") == 1 and prompt == " ".join(prompt.split())
        assert 1 <= len(words) <= 12 and len(words_to_ids(prompt.replace("{}", ""))) < 16
        assert all(word.strip(".,'-").replace("-", "").replace("'", "").isalnum() for word in words), template
    assert all(len(bundled(subject, [kind]).prompts) >= 10 for kind in BUNDLED[subject])


def test_vico_is_trained_with_as_many_prompts_as_its_authors_have():
    prompts = bundled("pictures")
    assert [len(prompts.of([kind]).prompts) for kind in prompts.kinds] == [27] * 3
    for kind in prompts.kinds:
        assert [t.replace(kind, "photo") for t in prompts.of([kind]).templates] == list(prompts.of(["photo"]).templates)
    for name in ("vico_train", "vico_two_objects"):
        nodes = json.loads(template(name).read_text("utf-8"))["nodes"]
        typed, = (node["widgets_values"] for node in nodes if node["type"] == "PersonalizeTrainingPrompts")
        chosen, = (node["widgets_values"] for node in nodes if node["type"] == "PersonalizePromptSet")
        assert (typed[0], chosen[0]) == ("", "pictures")


def test_kinds_are_selectable():
    chosen = bundled("animate", ["outfit", "colour"])
    assert chosen.kinds == ("outfit", "colour")
    assert chosen.prompts == tuple(p for p in bundled("animate").prompts if p[0] in ("outfit", "colour"))
    assert bundled("universal", ["outfit"]).prompts == ()


def test_own_lines():
    text = "# mine\n\n a {} at school \n[Action]\n({}:1.2) flying\nA {}  at school\n[own]\na [{}] cat\r\n"
    found = parse(text, "lines")
    assert found.prompts == (("own", "a {} at school"), ("action", "({}:1.2) flying"), ("own", "a [{}] cat"))
    assert found.fill("<x>") == ("a <x> at school", "(<x>:1.2) flying", "a [<x>] cat")
    assert parse("", "lines").prompts == ()


def test_joined_keeps_the_first_of_equal_prompts():
    found = join_sets(PromptSet((("style", "A {}"),)), PromptSet((("own", "a  {}"), ("own", "b {}"))))
    assert found.prompts == (("style", "A {}"), ("own", "b {}"))


@pytest.mark.parametrize("text, message", [
    ("a {} here\n\na dog there\n", "Line 3 of my.txt has no slot: 'a dog there'; write exactly one {}"),
    ("a {} and {}", "Line 1 of my.txt has 2 slots: 'a {} and {}'"),
    ("# c\n[action]\na { } runs", "Line 3 of my.txt has no slot"),
])
def test_lines_without_exactly_one_slot_are_named(text, message):
    with pytest.raises(ValueError) as refused:
        parse(text, "my.txt")
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)


def test_files(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes("\ufeffein {} im Café\r\n".encode())
    assert read_prompts(path).prompts == (("own", "ein {} im Café"),)
    path.write_bytes(b"\xff\xfe\x00{}")
    with pytest.raises(ValueError, match="mine.txt is not a text file in UTF-8"):
        read_prompts(path)


def test_the_maths_side_does_not_import_comfyui():
    tree = ast.parse(Path(prompts.__file__).read_text("utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names} | {
        node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"__future__", "collections.abc", "io", "re", "dataclasses", "pathlib", "foreign.text"}


def test_templates_of_automatic1111():
    found = parse("a photo of a [name]\n[name]\n[style]\na [name], oil", "subject.txt")
    assert found.prompts == (("own", "a photo of a {}"), ("own", "{}"), ("style", "a {}, oil"))
    with pytest.raises(
        ValueError, match=r"^Line 2 of subject.txt has \[filewords\], a picture's caption.* captions of Subject"
    ):
        parse("a [name]\na [name], [filewords]", "subject.txt")


def test_only_line_breaks_divide_prompts():
    assert parse("a {} one two\ra {} three\u2028four\r\n", "x").templates == ("a {} one two", "a {} three\u2028four")


def test_a_huge_file_is_not_read(tmp_path):
    path = tmp_path / "huge.txt"
    path.write_text("a photo of {}\n" * 7_500_000)
    assert path.stat().st_size > 100 * 2**20
    tracemalloc.start()
    try:
        with pytest.raises(
            ValueError, match=r"^huge\.txt has 105 MB, more than the .* that are read; make it shorter\.$"
        ):
            read_prompts(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
