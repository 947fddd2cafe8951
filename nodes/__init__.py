"""Table of contents: the rooms of the pack and the node classes each of them registers."""
from __future__ import annotations

import importlib
import logging

from comfy_api.latest import ComfyExtension

log = logging.getLogger("personalize")

ROOMS = ("text", "recording", "training", "visual_prompts", "evaluate", "papers.core", "papers.context",
         "papers.detex", "papers.harmonize", "papers.vico")


def node_classes() -> list[type]:
    """Node classes of every room that can be imported; a room that cannot is logged by name and left out."""
    classes = []
    for room in ROOMS:
        try:
            classes += importlib.import_module(f".{room}.nodes", __name__).NODES
        except Exception:
            log.exception("Personalize: the nodes of '%s' could not be loaded; the other nodes still work.", room)
    return classes


class PersonalizeExtension(ComfyExtension):
    """What ComfyUI asks for the pack's nodes."""

    async def get_node_list(self) -> list[type]:
        return node_classes()


async def comfy_entrypoint() -> PersonalizeExtension:
    """Entry point that ComfyUI calls once while it loads custom nodes."""
    importlib.import_module(".page_texts", __name__).serve()
    return PersonalizeExtension()
