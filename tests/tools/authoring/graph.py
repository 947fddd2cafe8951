"""A workflow as its author thinks of it: nodes with their inputs, the groups they are in, and the note beside them."""
from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from support.paths import PACK

GROUP_COLOR = "#3f789e"
FIRST_SIGHT = (1500, 760)  # a note and the first nodes, readable on a screen of 1366 × 768
TITLE = 30  # height of a node's title, which is above its place
NOTE_COLORS = {"color": "#432", "bgcolor": "#653"}


@dataclass(frozen=True)
class Node:
    """inputs: widget -> value, or input -> (node id, output slot). size: in the canvas' pixels."""

    id: str
    type: str
    inputs: dict[str, object] = field(default_factory=dict)
    title: str | None = None
    size: tuple[int, int] | None = None
    color: str | None = None


@dataclass(frozen=True)
class Group:
    """A titled box around the nodes of these ids, of which the first is in sight when the workflow opens."""

    title: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Note:
    """Markdown on the canvas."""

    text: str
    size: tuple[int, int]
    title: str = "How to use this"


@dataclass(frozen=True)
class Graph:
    """A workflow: what the template browser calls it, and what is on its canvas; it opens at its note.

    groups: from left to right, each node in one of them.
    """

    name: str
    title: str
    nodes: tuple[Node, ...]
    groups: tuple[Group, ...]
    note: Note | None = None

    @property
    def path(self) -> Path:
        """Where the finished workflow lies."""
        return PACK / "workflows" / f"{self.title}.json"

    def prompt(self) -> dict:
        """The API format."""
        return {node.id: {"class_type": node.type, "_meta": {"title": node.title} if node.title else {}, "inputs": {
            name: list(value) if isinstance(value, tuple) else value for name, value in node.inputs.items()}}
            for node in self.nodes}

    def dressed(self, document: dict) -> dict:
        """The page's UI format of `prompt()`, with each node's size, title, colour and model to download."""
        drawn = {node.id: node for node in self.nodes}
        for saved in document["nodes"]:
            node = drawn[str(saved["id"])]
            saved["size"] = list(node.size) if node.size else saved["size"]
            if node.title:
                saved["title"] = node.title
            if node.color:
                saved["color"] = node.color
            if node.type == "CheckpointLoaderSimple":
                saved["properties"]["models"] = [model_of(node.inputs["ckpt_name"])]
        return document


def group_box(group: Group, number: int, box: Sequence[int]) -> dict:
    """A group as the page saves it. box: left, top, right, bottom."""
    left, top, right, bottom = box
    return {"id": number, "title": group.title, "bounding": [left, top, right - left, bottom - top],
            "color": GROUP_COLOR, "font_size": 24, "flags": {}}


def note_node(note: Note, node_id: int, at: tuple[int, int]) -> dict:
    """A note as the page saves it."""
    return {"id": node_id, "type": "MarkdownNote", "pos": list(at), "size": list(note.size), "flags": {},
            "order": 0, "mode": 0, "inputs": [], "outputs": [], "title": note.title, "properties": {},
            "widgets_values": [note.text], **NOTE_COLORS}


def model_of(name: str) -> dict:
    """Where the page offers to download the checkpoint: as in the template of ComfyUI's own package that names it."""
    import comfyui_workflow_templates_json as package

    for template in sorted(Path(package.__file__).parent.glob("templates/*.json")):
        content = json.loads(template.read_text(encoding="utf-8"))
        for node in content.get("nodes", []) if isinstance(content, dict) else []:
            for model in node.get("properties", {}).get("models", []):
                if model["name"] == name:
                    return {key: model[key] for key in ("name", "url", "directory")}
    raise ValueError(f"no template of ComfyUI names {name}")
