"""Texts of the page and of nodes in locales/: none is missing, none is left over, each language says the same."""
from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from authoring.locales import LANGUAGES, SYNTAX, catalog, differences, files
from support.page_texts import LOCALES, PACK, calls, holes, texts

SHOWN = ['element("p", { title: "Hello" })', 'element("p", {}, "Hello")', 'setText(node, `Hello ${name}`)',
         'setText(node, is ? "Hello" : "")', 'node.placeholder = "Hello"', 'node.setAttribute("aria-label", "Hello")',
         'throw new Error("it went wrong")', 'const said = "Hello world"']
NOT_SHOWN = ['element("p", { class: "pz-row wide" }, ` ${t("tray.hint")}`)', 'node.setAttribute("type", "submit")',
             'console.error("it went wrong")', 'body.append("type", "input")', 'setText(node, kind === "now" ? a : b)']
ENGLISH = texts("en")
WRITE = "translate it in tests/tools/authoring/translations/, then run authoring.locales (CONTRIBUTING.md)"


@pytest.fixture(scope="module")
def schemas(node_classes):
    return [cls.GET_SCHEMA() for cls in node_classes]


def wanted(call):
    return {key for key in ENGLISH for pattern in call.keys if pattern.fullmatch(key)}


def test_every_text_that_the_page_asks_for_is_there():
    for call in calls():
        assert call.keys, f"{call.place}: t() takes its key as it is written, or a test cannot see what is asked for"
        for key in call.keys:
            assert any(map(key.fullmatch, ENGLISH)), f"{call.place}: locales/en/main.json has no text {key.pattern}"


def test_every_text_is_asked_for():
    asked = set().union(*map(wanted, calls()))
    assert asked == set(ENGLISH), f"not asked for: {sorted(set(ENGLISH) - asked)}"


def test_a_text_gets_the_values_that_stand_in_it():
    for call in calls():
        if call.values is not None:
            needed = set().union(*(holes(ENGLISH[key]) for key in wanted(call)))
            numbers = {"count"} & call.values
            assert call.values - numbers == needed - numbers, f"{call.place}: values for {sorted(needed)}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_english_text_of_now_is_translated(language, schemas):
    changed = differences(language, schemas)
    assert not changed["missing"], WRITE
    assert not changed["left over"], f"not said any more: {WRITE}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_files_are_written_from_the_translations(language, schemas):
    for path, text in files(language, schemas).items():
        assert path.read_text(encoding="utf-8") == text, f"{path} is old: run authoring.locales (CONTRIBUTING.md)"


@pytest.mark.parametrize("language", LANGUAGES)
def test_older_pages_can_show_the_texts_of_nodes(language):
    known = catalog(language)
    assert not [text for kind in ("node", "name", "category") for text in known[kind].values() if SYNTAX.search(text)]


def test_the_folders_are_those_of_the_languages():
    assert sorted(folder.name for folder in LOCALES.iterdir()) == sorted(["en", *LANGUAGES])


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_has_each_text_with_the_same_values(language):
    translated = texts(language)
    assert translated.keys() == ENGLISH.keys()
    for key, forms in translated.items():
        assert holes(forms) == holes(ENGLISH[key]), key
        assert "other" in forms and all(text.strip() for text in forms.values()), key


def test_a_text_that_cannot_be_translated_is_found(tmp_path):
    (tmp_path / "page.js").write_text("\n".join([*SHOWN, *NOT_SHOWN]))
    rules = {"lint": {"plugins": [str(PACK / "tests" / "tools" / "page_texts.js")], "rules": {"tags": []}}}
    (tmp_path / "deno.json").write_text(json.dumps(rules))
    lint = subprocess.run([sys.executable, "-m", "deno", "lint", "--json", str(tmp_path / "page.js")], check=False,
                          cwd=tmp_path, env={**os.environ, "NO_COLOR": "1"}, capture_output=True, text=True)
    found = json.loads(lint.stdout)["diagnostics"]
    assert {entry["code"] for entry in found} == {"personalize/page-texts"}
    assert [entry["range"]["start"]["line"] for entry in found] == list(range(1, len(SHOWN) + 1))
