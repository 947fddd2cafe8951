"""The bundled subgraph "Learn my subject", and the template that opens it with ComfyUI's own drawing beside it."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from support.browser import ComfyPage
from support.paths import PACK

from .graph import Graph, Group, Node, Note
from .graphs import (
    CHECKPOINT_WIRES,
    CONCEPT,
    CORE,
    DIFFUSION,
    EMBEDDING_PART,
    GREEN,
    LATENT,
    LOADER,
    PICTURES,
    PROMPTS,
    RED,
    SAMPLER,
    TRAIN_1,
)

NAME = "Learn my subject"
BLUEPRINT = PACK / "subgraphs" / f"{NAME}.json"
DESCRIPTION = ("Learns a subject from your pictures as a word that any prompt can use: choose a word, say what it is, "
               "drop 4 or 5 pictures, press Run. Inside are the ordinary nodes.")
ALIASES = ["train", "dreambooth", "textual inversion", "character", "face", "style", "dataset", "lora training"]

PROMOTED = (("PersonalizeConcept", "placeholder", "word"), ("PersonalizeConcept", "class_words", "what it is"),
            ("CheckpointLoaderSimple", "ckpt_name", "checkpoint"))
OUTPUTS = (("PersonalizeTrain", "model", "model"), ("CheckpointLoaderSimple", "CLIP", "clip"),
           ("CheckpointLoaderSimple", "VAE", "vae"), ("PersonalizeSaveConcept", "prompt_text", "prompt_text"))
TO_SUBGRAPH = """async ([name, promoted, outputs, description]) => {
    const {graph} = window.app, {subgraph, node: outer} = graph.convertToSubgraph(new Set(graph.nodes));
    await new Promise(done => setTimeout(done, 500));
    for (const input of [...subgraph.inputs]) subgraph.removeInput(input);  // seeds, which it brings out
    const inner = type => subgraph.nodes.find(node => node.type === type);
    subgraph.name = outer.title = name;
    subgraph.description = description;
    subgraph.category = 'personalize';
    for (const [type, widget, label] of promoted) {
        const slot = inner(type).inputs.find(input => input.widget?.name === widget);
        subgraph.addInput(label, slot.type).connect(slot, inner(type));
    }
    for (const [type, name, label] of outputs) {
        const slot = inner(type).outputs.find(output => output.name === name);
        subgraph.addOutput(label, slot.type).connect(slot, inner(type));
    }
}"""
OPEN = """() => { const {canvas, graph} = window.app, outer = graph.nodes.find(node => node.subgraph);
    canvas.openSubgraph(outer.subgraph, outer); }"""
CLOSE = "() => window.app.canvas.setGraph(window.app.rootGraph)"
ADD_NODES = """nodes => {
    const {graph} = window.app, {LiteGraph} = window, outer = graph.nodes.find(node => node.subgraph);
    const added = Object.fromEntries(nodes.map(({id, type, title, values}) => {
        const node = LiteGraph.createNode(type);
        if (title) node.title = title;
        graph.add(node);
        for (const [name, value] of Object.entries(values))
            node.widgets.find(widget => widget.name === name).value = value;
        return [id, node];
    }));
    for (const {id, wires} of nodes) for (const [name, [from, output]] of Object.entries(wires)) {
        const source = from === 'outer' ? outer : added[from];
        source.connect(source.outputs.findIndex(each => each.name === output), added[id],
            added[id].inputs.findIndex(input => input.name === name));
    }
    return Object.fromEntries(Object.entries({outer, ...added}).map(([id, node]) => [id, String(node.id)]));
}"""


def inside(concept: dict[str, object], pictures: dict[str, object]) -> Graph:
    """Template "Learn your subject as a word" up to its file."""
    return Graph("inside", "", nodes=(
        Node("1", "CheckpointLoaderSimple", LOADER, size=(400, 120)),
        Node("2", "PersonalizeConcept", concept, size=(400, 180)),
        Node("3", "PersonalizeSubject", {"concept": ("2", 0), **pictures}, size=(400, 460)),
        Node("4", "PersonalizeTrainEmbedding", EMBEDDING_PART, size=(400, 130)),
        Node("5", "PersonalizeDiffusionLoss", DIFFUSION, size=(400, 180)),
        Node("6", "PersonalizePromptSet", {**PROMPTS, "kind": "universal"}, size=(400, 200)),
        Node("7", "PersonalizeCoReLoss", {"prompt_set": ("6", 0), "previous": ("5", 0), **CORE},
             size=(400, 200)),
        Node("8", "PersonalizeTrain", {
            **CHECKPOINT_WIRES, "subject": ("3", 0), "trainable": ("4", 0), "loss": ("7", 0), **TRAIN_1},
             size=(580, 700)),
        Node("9", "PersonalizeSaveConcept", {"concept": ("8", 0), "name": "", "format": "safetensors"},
             size=(400, 160)),
    ), groups=(
        Group("1 · Your subject", ("2", "3")),
        Group("2 · What to learn, and from which model", ("5", "6", "7", "4", "1")),
        Group("3 · Train", ("8",)),
        Group("4 · Keep it", ("9",)),
    ))


@dataclass(frozen=True)
class Stock:
    """A node beside the subgraph. wires: input -> (id, or "outer", and the output's name)."""

    id: str
    type: str
    size: tuple[int, int]
    wires: dict[str, tuple[str, str]]
    values: dict[str, object]
    title: str = ""
    color: str = ""


THREE_CLICKS_NOTE = """\
**Three clicks**, on *Learn my subject*:
1. **word**: what prompts will call it, `<my-dog>`; and **what it is**: dog.
2. Drop **4 or 5 pictures** on it.
3. **Run.**

The toy's pictures are only an example. While it learns, previews appear; *Stop* keeps the work.

*Save Image* then shows your subject in the scene of *Scene*, where {} stands for it. The word is saved as an ordinary \
file, for any prompt.

Open the subgraph (the arrow in its title) for every setting: inside are the nodes of the template *Learn your subject \
as a word*.
"""
DRAWING = (
    Stock("scene", "StringReplace", (400, 260), {"replace": ("outer", "prompt_text")},
          {"string": "a photo of {} on a pebble beach", "find": "{}", "replace": ""}, "Scene", GREEN),
    Stock("prompt", "CLIPTextEncode", (400, 120), {
        "clip": ("outer", "clip"), "text": ("scene", "STRING")}, {}, "Prompt", GREEN),
    Stock("negative", "CLIPTextEncode", (400, 120), {"clip": ("outer", "clip")}, {"text": ""},
          "Negative prompt", RED),
    Stock("latent", "EmptyLatentImage", (400, 130), {}, LATENT),
    Stock("sampler", "KSampler", (400, 290), {
        "model": ("outer", "model"), "positive": ("prompt", "CONDITIONING"), "negative": ("negative", "CONDITIONING"),
        "latent_image": ("latent", "LATENT")}, SAMPLER),
    Stock("decode", "VAEDecode", (260, 80), {
        "samples": ("sampler", "LATENT"), "vae": ("outer", "vae")}, {}),
    Stock("save", "SaveImage", (460, 540), {"images": ("decode", "IMAGE")},
          {"filename_prefix": "personalize/my-subject"}),
)
THREE_CLICKS = "Learn my subject in three clicks"
OUTER_SIZE = (560, 900)
NOTE = Note(THREE_CLICKS_NOTE, size=(400, 460))
MY_SUBJECT = {**CONCEPT, "placeholder": "<my-subject>", "class_words": ""}
NO_PICTURES = {**PICTURES, "folder": ""}


def to_subgraph(page: ComfyPage) -> None:
    """Puts all that is on the canvas into one subgraph node with the person's inputs alone."""
    page.js(TO_SUBGRAPH, [NAME, PROMOTED, OUTPUTS, DESCRIPTION])
    page.settle(500)


def add_drawing(page: ComfyPage) -> dict[str, str]:
    """ComfyUI's own nodes beside it; the names of these and "outer" → ids."""
    return page.js(ADD_NODES, [{"id": node.id, "type": node.type, "title": node.title, "values": node.values,
                                "wires": {name: list(wire) for name, wire in node.wires.items()}} for node in DRAWING])


def dressed(document: dict, ids: dict[str, str]) -> dict:
    """The page's UI format with each node's size and colour."""
    drawing = {ids[node.id]: node for node in DRAWING}
    for saved in document["nodes"]:
        node = drawing.get(str(saved["id"]))
        saved["size"] = list(node.size if node else OUTER_SIZE)
        saved |= {"color": node.color} if node and node.color else {}
    return document


def groups(ids: dict[str, str]) -> tuple[Group, Group]:
    """The subgraph's node, and what draws."""
    return (Group("1 · Word, pictures, Run", (ids["outer"],)),
            Group("2 · Draw it", tuple(ids[node.id] for node in DRAWING)))


def path_of_template() -> Path:
    """Where the template lies."""
    return PACK / "workflows" / f"{THREE_CLICKS}.json"
