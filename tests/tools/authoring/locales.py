"""Writes locales/<language>/*.json from what has been translated: tests/tools/authoring/translations/<language>.json.

    COMFYUI_PATH=… PYTHONPATH=tests:tests/tools .testenv/venv/bin/python -m authoring.locales

A translation stands beside its English text, once, however many nodes say it: when the English changes it belongs to
nothing any more, is listed, and the new text waits for another. English itself is locales/en/main.json for the page,
and for nodes their schemas: ComfyUI shows those where a language has nothing, and a copy would only fall behind.
"""
from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from support.paths import PACK

LOCALES = PACK / "locales"
TRANSLATIONS = Path(__file__).parent / "translations"
LANGUAGES = tuple(sorted(file.stem for file in TRANSLATIONS.glob("*.json")))
SYNTAX = re.compile(r"[{}|@%]")  # older pages of ComfyUI take these in a node's text as commands, and fail
Kinds = dict[str, dict[str, str]]  # "page", "node", "name", "category" → {English: translation}


def english() -> dict[str, Any]:
    """The page's texts: {section: {key: text or {plural category: text}}}."""
    return json.loads((LOCALES / "en" / "main.json").read_text(encoding="utf-8"))["personalize"]


def catalog(language: str) -> Kinds:
    """What has been translated."""
    return json.loads((TRANSLATIONS / f"{language}.json").read_text(encoding="utf-8"))


def wanted(schemas: Iterable[Any]) -> dict[str, list[str]]:
    """Every English text of the page and of the nodes, by its kind, as `catalog` has them translated."""
    asked: dict[str, dict[str, None]] = {"page": {}, "category": {}, "node": {}, "name": {}}

    def ask(kind: str, text: str) -> str:
        asked[kind][text] = None
        return text

    page_texts(ask)
    node_texts(schemas, ask)
    return {kind: list(texts) for kind, texts in asked.items()}


def page_texts(translate: Callable[[str, str], str]) -> dict[str, Any]:
    """main.json, of texts that `translate` makes of ("page", English); one form for every number, as Chinese and
    Japanese have it."""
    def other(text):
        return text if isinstance(text, str) else text["other"]

    return {"personalize": {section: {key: translate("page", other(text)) for key, text in texts.items()}
                            for section, texts in english().items()}}


def node_texts(schemas: Iterable[Any], translate: Callable[[str, str], str]) -> tuple[dict[str, Any], dict[str, str]]:
    """nodeDefs.json, and main.json's names of categories, of what `translate` makes of ("node" | "name" | "category",
    English)."""
    nodes, categories = {}, {}
    for schema in schemas:
        category = schema.category.rpartition("/")[2]
        categories[category] = translate("category", category)
        nodes[schema.node_id] = {
            "display_name": translate("node", schema.display_name),
            "description": translate("node", schema.description),
            "inputs": {given.id: _slot(given, given.id, translate) for given in schema.inputs},
            "outputs": {str(index): _slot(given, given.display_name or given.id, translate)
                        for index, given in enumerate(schema.outputs)}}
    return nodes, categories


def _slot(given: Any, name: str, translate: Callable[[str, str], str]) -> dict[str, str]:
    named = {"name": translate("name", given.display_name or name)}
    return {**named, "tooltip": translate("node", given.tooltip)} if given.tooltip else named


def files(language: str, schemas: Iterable[Any]) -> dict[Path, str]:
    """What belongs into the files of a language; a text that has not been translated stays English."""
    known = catalog(language)

    def translate(kind: str, text: str) -> str:
        return known[kind].get(text, text)

    nodes, categories = node_texts(schemas, translate)
    # Names are shared with every pack: one that stays as it is, as a paper's, is not said.
    renamed = {name: translated for name, translated in categories.items() if name != translated}
    main = {"nodeCategories": renamed, **page_texts(translate)}
    return {LOCALES / language / name: json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            for name, content in (("main.json", main), ("nodeDefs.json", nodes))}


def differences(language: str, schemas: Iterable[Any]) -> dict[str, list[str]]:
    """{"missing": English texts without a translation, "left over": translations of what is said no more}."""
    texts, known = wanted(schemas), catalog(language)
    return {"missing": [text for kind in texts for text in texts[kind] if text not in known[kind]],
            "left over": [text for kind in texts for text in known[kind] if text not in texts[kind]]}


def main() -> int:
    """Write every language; 1 if something waits for a translation."""
    from support import inprocess, pack

    with tempfile.TemporaryDirectory() as base:
        inprocess.start(Path(base))
        pack.make_importable()
        from personalize.nodes import node_classes

        schemas = [node.GET_SCHEMA() for node in node_classes()]
    open_texts = 0
    for language in LANGUAGES:
        for path, text in files(language, schemas).items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        for what, texts in differences(language, schemas).items():
            open_texts += len(texts)
            for text in texts:
                print(f"{language}, {what}: {text}")
    return min(open_texts, 1)


if __name__ == "__main__":
    sys.exit(main())
