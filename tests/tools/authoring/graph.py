"""A workflow as its author thinks of it: nodes with their inputs, where they stand, and the words around them."""
from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from support.paths import PACK

GROUP_COLOR = "#3f789e"
CHANNEL = 60  # wider than the columns are described
FIRST_SIGHT = (1500, 760)  # a note and the first nodes, readable on a screen of 1366 × 768
NOTE_COLORS = {"color": "#432", "bgcolor": "#653"}


@dataclass(frozen=True)
class Node:
    """inputs: widget -> value, or input -> (node id, output slot). at, size: in the canvas' pixels."""

    id: str
    type: str
    at: tuple[int, int]
    inputs: dict[str, object] = field(default_factory=dict)
    title: str | None = None
    size: tuple[int, int] | None = None
    color: str | None = None


@dataclass(frozen=True)
class Group:
    """A titled rectangle: x, y, width, height."""

    title: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Note:
    """Markdown on the canvas."""

    text: str
    at: tuple[int, int]
    size: tuple[int, int]
    title: str = "How to use this"


@dataclass(frozen=True)
class Graph:
    """A workflow: what the template browser calls it, and what is on its canvas; it opens at its first note.

    pictured: the part that the README shows.
    """

    name: str
    title: str
    nodes: tuple[Node, ...]
    groups: tuple[Group, ...]
    notes: tuple[Note, ...]
    pictured: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def path(self) -> Path:
        """Where the finished workflow lies."""
        return PACK / "workflows" / f"{self.title}.json"

    @property
    def first_sight(self) -> list[int]:
        """x, y, width, height of what is to be read first."""
        x, y = self.notes[0].at
        return [x, y - 30, *FIRST_SIGHT]

    def prompt(self) -> dict:
        """The API format."""
        return {node.id: {"class_type": node.type, "_meta": {"title": node.title} if node.title else {}, "inputs": {
            name: list(value) if isinstance(value, tuple) else value for name, value in node.inputs.items()}}
            for node in self.nodes}

    def arranged(self, document: dict) -> dict:
        """The page's UI format of `prompt()` with everything where its author wants it."""
        drawn = {node.id: node for node in self.nodes}
        for saved in document["nodes"]:
            node = drawn[str(saved["id"])]
            saved["pos"] = [node.at[0] + self._spread(node.at[0]), node.at[1]]
            saved["size"] = list(node.size) if node.size else saved["size"]
            if node.title:
                saved["title"] = node.title
            if node.color:
                saved["color"] = node.color
            if node.type == "CheckpointLoaderSimple":
                saved["properties"]["models"] = [model_of(node.inputs["ckpt_name"])]
        return with_words(document, self.notes, [self._wider(group) for group in self.groups])

    def _spread(self, x: float) -> int:
        """How far a column is moved to the right, so that there is room for wires between columns."""
        return CHANNEL * len({node.at[0] for node in self.nodes if node.at[0] < x})

    def _wider(self, group: Group) -> Group:
        left, top, width, height = group.box
        right = left + width - 1
        last = max((node.at[0] for node in self.nodes if node.at[0] < right), default=left)
        first = min((node.at[0] for node in self.nodes if node.at[0] >= left), default=left)
        start = left + self._spread(first)
        return Group(group.title, (start, top, right + 1 + self._spread(last) - start, height))


def with_words(document: dict, notes: Sequence[Note], groups: Sequence[Group]) -> dict:
    """The page's UI format with notes and groups."""
    first = document["last_node_id"] + 1
    document["nodes"] += [note_node(note, first + number) for number, note in enumerate(notes)]
    document["last_node_id"] += len(notes)
    document["groups"] = [{"id": number, "title": group.title, "bounding": list(group.box), "color": GROUP_COLOR,
                           "font_size": 24, "flags": {}} for number, group in enumerate(groups, 1)]
    return document


def note_node(note: Note, node_id: int) -> dict:
    """A note as the page saves it."""
    return {"id": node_id, "type": "MarkdownNote", "pos": list(note.at), "size": list(note.size), "flags": {},
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
