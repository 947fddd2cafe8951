"""Writes workflows/*.json from their descriptions, through the real page, so that they are what it would save itself.

    COMFYUI_PATH=… PYTHONPATH=tests:tests/tools .testenv/venv/bin/python -m authoring.build [names]

With each comes a picture of it, <name>.jpg, which the template browser shows.
"""
from __future__ import annotations

import io
import json
import sys
import tempfile
import uuid
from pathlib import Path

from PIL import Image

from environment import chromium
from support import encoder_files, inprocess, vico_files
from support.browser import ComfyPage, launch, open_page
from support.paths import PACK, TESTS
from support.server import ComfyServer

from . import subgraph
from .catalog import ALL_GRAPHS
from .graph import FIRST_SIGHT, Graph, with_words
from .graphs import CHECKPOINT, CONCEPT, EMBEDDING, PICTURES
from .wires import PLACES, led_around

LARGE = {"width": 3400, "height": 1700}
THUMBNAIL_WIDTH = 1000
ON_PAGE = """([x, y, width, height]) => {
    const canvas = window.app.canvas, view = canvas.canvas.getBoundingClientRect(), {scale, offset} = canvas.ds;
    return {x: view.x + (x + offset[0]) * scale, y: view.y + (y + offset[1]) * scale,
            width: width * scale, height: height * scale};
}"""


def build(graph: Graph, page: ComfyPage) -> Path:
    """Write one workflow and its screenshot; the JSON's path. Raises ValueError if the page objects to anything."""
    page.js("prompt => window.app.loadApiJson(prompt, 'built')", graph.prompt())
    loaded = page.load_workflow(with_fixed_seeds(graph.arranged(page.workflow())))
    if loaded.problems:
        raise ValueError(f"{graph.name}: {loaded.problems}")
    document = led_around(page.workflow(), page.js(PLACES))
    page.load_workflow(document)
    document = page.workflow()
    document["extra"] = {"opens_at": graph.first_sight, **kept(document["extra"])}
    write(document, graph.path, graph.name)
    picture(page, graph.pictured).save(graph.path.with_suffix(".jpg"), quality=85)
    return graph.path


def build_subgraph(page: ComfyPage) -> Path:
    """Write "Learn my subject" for the node library, then the template that opens it; the template's path."""
    learn = Graph("learn_my_subject", "", subgraph.inside(subgraph.MY_SUBJECT, subgraph.NO_PICTURES), (), ())
    document = as_subgraph(learn, page)
    document["extra"] = {"BlueprintDescription": subgraph.DESCRIPTION, "BlueprintSearchAliases": subgraph.ALIASES}
    write(document, subgraph.BLUEPRINT, subgraph.NAME)

    example = Graph("example", "", subgraph.inside(CONCEPT, PICTURES), (), ())
    as_subgraph(example, page)
    ids = subgraph.add_drawing(page)
    document = with_fixed_seeds(page.workflow())
    looks = {ids[node.id]: (node.at, node.size, node.color) for node in subgraph.DRAWING}
    for node in document["nodes"]:
        node["pos"], node["size"], color = looks.get(str(node["id"]), (subgraph.OUTER_AT, subgraph.OUTER_SIZE, ""))
        node |= {"color": color} if color else {}
    with_words(document, [subgraph.NOTE], subgraph.GROUPS)
    page.load_workflow(document)
    page.load_workflow(led_around(page.workflow(), page.js(PLACES)))
    document = page.workflow()
    document["extra"] = {**kept(document["extra"]), "opens_at": [subgraph.NOTE.at[0], subgraph.NOTE.at[1] - 30, *FIRST_SIGHT]}
    write(document, subgraph.path_of_template(), subgraph.THREE_CLICKS)
    picture(page, (-20, -40, 3060, 1040)).save(subgraph.path_of_template().with_suffix(".jpg"), quality=85)
    return subgraph.path_of_template()


def as_subgraph(graph: Graph, page: ComfyPage) -> dict:
    """The graph within one subgraph node, on the canvas and as the page saves it."""
    page.js("prompt => window.app.loadApiJson(prompt, 'built')", graph.prompt())
    page.load_workflow(with_fixed_seeds(graph.arranged(page.workflow())))
    subgraph.to_subgraph(page)
    return page.workflow()


def write(document: dict, path: Path, name: str) -> None:
    """Save a workflow, with an id that is the same each time."""
    document["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, name))
    text = json.dumps(document, indent=1, ensure_ascii=False)
    for number, inner in enumerate((document.get("definitions") or {}).get("subgraphs", [])):
        text = text.replace(inner["id"], str(uuid.uuid5(uuid.NAMESPACE_URL, f"{name} {number}")))
    path.parent.mkdir(exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def kept(extra: dict) -> dict:
    """What the graph needs: the points that wires are led over."""
    return {name: extra[name] for name in ("reroutes", "linkExtensions") if extra.get(name)}


def picture(page: ComfyPage, box: tuple[int, int, int, int], width: int = THUMBNAIL_WIDTH) -> Image.Image:
    """A part of the canvas, x, y, width, height, as a picture `width` wide."""
    page.command("Comfy.Canvas.FitView")
    page.settle(800)
    shot = Image.open(io.BytesIO(page.page.screenshot(clip=page.js(ON_PAGE, list(box))))).convert("RGB")
    return shot.resize((width, round(shot.height * width / shot.width)), Image.Resampling.LANCZOS)


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
        server = ComfyServer(base, {"personalize": PACK, "tiny_models": TESTS / "tiny"})
        link = base / "models" / "checkpoints" / CHECKPOINT
        link.symlink_to(base / "models" / "checkpoints" / inprocess.provide_checkpoint("sd15", base))
        (base / "models" / "embeddings" / EMBEDDING).write_bytes(b"")
        encoder_files.provide(base)
        vico_files.provide(base)
        try:
            with launch(chromium.find()) as browser, open_page(browser, server) as page:
                page.page.set_viewport_size(LARGE)  # zoomed out further, the canvas leaves out all text
                for graph in ALL_GRAPHS:
                    if not names or graph.name in names:
                        print(build(graph, page))
                if not names or "subgraph" in names:
                    print(build_subgraph(page))
        finally:
            server.stop()


if __name__ == "__main__":
    main(sys.argv[1:])
