"""Saved workflows: changing values in them, and the prompt that Run would send, without a browser."""
from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

SEEDS = ("seed", "noise_seed")  # the page gives these a second widget, "control after generate"
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def with_values(document: dict, definitions: Mapping[str, dict], values: Mapping[str, Mapping[str, object]]) -> dict:
    """A copy of a workflow in UI format with other widget values.

    definitions: what /object_info answers. values: node type, or title where it is given one -> {widget: value}.
    Raises KeyError for a node or widget that is not there.
    """
    changed = copy.deepcopy(document)
    for kind, settings in values.items():
        nodes = [node for node in changed["nodes"] if kind in (node["type"], node.get("title"))]
        if not nodes:
            raise KeyError(f"the workflow has no node {kind}")
        for node in nodes:
            places = {name: place for place, name in enumerate(_widget_slots(definitions[node["type"]])) if name}
            for name, value in settings.items():
                node["widgets_values"][places[name]] = value
    return changed


def to_prompt(document: dict, definitions: Mapping[str, dict]) -> dict:
    """The API format of a workflow in UI format without subgraphs, muted or bypassed nodes."""
    sources = {link[0]: [str(link[1]), link[2]] for link in document["links"]}
    return {str(node["id"]): {"class_type": node["type"], "inputs": _inputs(node, definitions[node["type"]], sources)}
            for node in document["nodes"] if node["type"] in definitions}


def with_defaults(prompt: dict, definitions: Mapping[str, dict]) -> dict:
    """A prompt in API format with the default of every widget that it says nothing of, as the page fills them in."""
    return {node_id: {**node, "inputs": {**_defaults(definitions[node["class_type"]]), **node["inputs"]}}
            for node_id, node in prompt.items()}


def _defaults(definition: dict) -> dict:
    slots = _widget_slots(definition)
    return {name: options["default"] for name, (_, options) in _declared(definition)
            if name in slots and "default" in options}


def _inputs(node: dict, definition: dict, sources: Mapping[int, list]) -> dict:
    saved = zip(_widget_slots(definition), node.get("widgets_values", []))
    values = {name: value for name, value in saved if name}
    links = {entry["name"]: sources[entry["link"]] for entry in node.get("inputs", []) if entry.get("link") is not None}
    return {**values, **links}


def _widget_slots(definition: dict) -> list[str | None]:
    """Names of the widgets in the order of widgets_values; None for the page's own."""
    slots: list[str | None] = []
    for name, (kind, options) in _declared(definition):
        if (isinstance(kind, list) or kind in WIDGETS) and not options.get("forceInput"):
            slots.append(name)
            if kind == "INT" and options.get("control_after_generate", name in SEEDS):
                slots.append(None)
    return slots


def _declared(definition: dict) -> Iterator[tuple[str, tuple[object, dict]]]:
    for group in ("required", "optional"):
        for name, (kind, *options) in definition["input"].get(group, {}).items():
            yield name, (kind, options[0] if options else {})
