"""Writes workflows/*.json from their descriptions, through the real page, so that they are what it would save itself.

    COMFYUI_PATH=… PYTHONPATH=tests:tests/tools .testenv/venv/bin/python -m authoring.build [names]

It needs Graphviz (`apt-get install graphviz`). Pictures for the template browser: `authoring.thumbnails`.
"""
from __future__ import annotations

import json
import sys
import tempfile
import uuid
from pathlib import Path

from environment import chromium
from support import detex_files, encoder_files, inprocess, pack, vico_files
from support.browser import ComfyPage, launch, open_page
from support.paths import PACK, TESTS
from support.server import ComfyServer

from . import subgraph
from .catalog import ALL_GRAPHS
from .graph import FIRST_SIGHT, TITLE, Graph
from .graphs import CHECKPOINT, CONCEPT, EMBEDDING, PICTURES
from .layout import PLACES, laid_out, laid_out_inside

LARGE = {"width": 5200, "height": 2400}
WIRES = ("link", "links")  # null where there is none


def build(graph: Graph, page: ComfyPage) -> Path:
    """Write one workflow; its path. Raises ValueError if the page objects to anything."""
    put(graph, page)
    loaded = page.load_workflow(laid_out(page.workflow(), page.js(PLACES), graph.groups, graph.note))
    if loaded.problems:
        raise ValueError(f"{graph.name}: {loaded.problems}")
    finish(page, graph.path, graph.name)
    return graph.path


def build_subgraph(page: ComfyPage) -> Path:
    """Write "Learn my subject" for the node library, then the template that opens it; the template's path."""
    document = as_subgraph(subgraph.inside(subgraph.MY_SUBJECT, subgraph.NO_PICTURES), page)
    document["extra"] = {"BlueprintDescription": subgraph.DESCRIPTION, "BlueprintSearchAliases": subgraph.ALIASES}
    write(document, subgraph.BLUEPRINT, subgraph.NAME)

    as_subgraph(subgraph.inside(CONCEPT, PICTURES), page)
    ids = subgraph.add_drawing(page)
    page.load_workflow(subgraph.dressed(with_fixed_seeds(page.workflow()), ids))
    page.load_workflow(laid_out(page.workflow(), page.js(PLACES), subgraph.groups(ids), subgraph.NOTE))
    finish(page, subgraph.path_of_template(), subgraph.THREE_CLICKS)
    return subgraph.path_of_template()


def put(graph: Graph, page: ComfyPage) -> None:
    """The graph's nodes on the canvas, at their sizes and wherever the page puts them."""
    page.js("prompt => window.app.loadApiJson(prompt, 'built')", graph.prompt())
    page.load_workflow(with_fixed_seeds(graph.dressed(page.workflow())))


def finish(page: ComfyPage, path: Path, name: str) -> None:
    """Save what is on the canvas so that it opens at its note."""
    document = page.workflow()
    left, top = next(node["pos"] for node in document["nodes"] if node["type"] == "MarkdownNote")
    wires = {key: document["extra"][key] for key in ("reroutes", "linkExtensions") if document["extra"].get(key)}
    document["extra"] = {"opens_at": [left, top - TITLE, *FIRST_SIGHT], **wires}
    write(document, path, name)


def as_subgraph(graph: Graph, page: ComfyPage) -> dict:
    """The graph within one subgraph node, on the canvas and as the page saves it."""
    put(graph, page)
    subgraph.to_subgraph(page)
    document = page.workflow()
    page.js(subgraph.OPEN)
    page.settle(800)
    laid_out_inside(document["definitions"]["subgraphs"][0], page.js(PLACES), graph.groups)
    page.js(subgraph.CLOSE)
    page.settle(800)
    page.load_workflow(document)
    return page.workflow()


def write(document: dict, path: Path, name: str) -> None:
    """Save a workflow, with an id that is the same each time."""
    document = without_nulls({**document, "id": str(uuid.uuid5(uuid.NAMESPACE_URL, name))})
    subgraphs = document.get("definitions", {}).get("subgraphs", [])
    text = json.dumps(document, indent=1, ensure_ascii=False)
    for number, inner in enumerate(subgraphs):
        text = text.replace(inner["id"], str(uuid.uuid5(uuid.NAMESPACE_URL, f"{name} {number}")))
    path.parent.mkdir(exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def without_nulls(part):
    """A workflow, or a part of one, without what is null but wires: newer pages read what is there."""
    if isinstance(part, list):
        return [without_nulls(each) for each in part]
    if not isinstance(part, dict):
        return part
    return {key: without_nulls(value) for key, value in part.items() if value is not None or key in WIRES}


def with_fixed_seeds(document: dict) -> dict:
    """A pressed Run must give what the workflow's author saw."""
    for node in document["nodes"]:
        values = node.get("widgets_values", [])
        node["widgets_values"] = ["fixed" if value == "randomize" else value for value in values]
    return document


def main(names: list[str]) -> None:
    """Build the workflows of these names, or all."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        inprocess.start(base)
        pack.make_importable()
        server = ComfyServer(base, {"personalize": PACK, "tiny_models": TESTS / "tiny"})
        link = base / "models" / "checkpoints" / CHECKPOINT
        link.symlink_to(base / "models" / "checkpoints" / inprocess.provide_checkpoint("sd15", base))
        (base / "models" / "embeddings" / EMBEDDING).write_bytes(b"")
        encoder_files.provide(base)
        vico_files.provide(base)
        detex_files.provide(base)
        try:
            with launch(chromium.find()) as browser, open_page(browser, server) as page:
                page.page.set_viewport_size(LARGE)
                for graph in ALL_GRAPHS:
                    if not names or graph.name in names:
                        print(build(graph, page))
                if not names or "subgraph" in names:
                    print(build_subgraph(page))
        finally:
            server.stop()


if __name__ == "__main__":
    main(sys.argv[1:])
