"""A prompt that holds none of the words which its CLIP was taught: told where it is encoded, and in the log."""
from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from comfy_execution.utils import get_executing_context

from ..api_prompt import is_link
from ..notice import notice
from ..page import running_server
from .placeholders import EMBEDDING

ENCODERS = ("PersonalizeEncodeWithSpans",)  # of this pack, whose prompt is a person's
PACK = "Personalize"
_TOLD: deque[tuple[str, str]] = deque(maxlen=100)  # (run, node): a node may split its prompt several times


def tell_unsaid(texts: Sequence[str], words: Sequence[str]) -> None:
    """Says once a run and node that a prompt has none of `words`, if it goes to the positive side of a sampler."""
    running = get_executing_context()
    if running is None or not any(text.strip() for text in texts) or any(EMBEDDING in text for text in texts):
        return
    graph, key = running_graph(running.prompt_id), (running.prompt_id, running.node_id)
    if key in _TOLD or not is_positive_prompt(graph, running.node_id):
        return
    _TOLD.append(key)
    named = " or ".join(words)
    notice(f"This prompt does not hold {named}, so it draws without what Apply Concept brings; write the word into it: "
           f"'{texts[0].strip()}'")


def is_positive_prompt(graph: Mapping[str, Any], node: str) -> bool:
    """Whether a node of a graph in API format encodes prompts, and what it gives goes elsewhere than into negative
    sides. False for nodes that are not in the graph, as those which other nodes make while they run."""
    kind = graph.get(node, {}).get("class_type", "")
    if not kind or kind.startswith(PACK) and kind not in ENCODERS:
        return False
    return any("negative" not in name for name in _destinations(graph, node, set()))


def running_graph(run: str) -> Mapping[str, Any]:
    """The graph of a run in progress, in API format; empty if the server has none of that id."""
    queue = getattr(running_server(), "prompt_queue", None)
    entries = list(getattr(queue, "currently_running", {}).values())
    return next((entry[2] for entry in entries if entry[1] == run), {})


def _destinations(graph: Mapping[str, Any], node: str, seen: set[str]) -> Iterator[str]:
    """Names of the inputs to which the output of a node goes in the end."""
    if node in seen:
        return
    seen.add(node)
    for target, entry in graph.items():
        for name, value in entry.get("inputs", {}).items():
            if is_link(value) and str(value[0]) == node:
                is_side = "positive" in name or "negative" in name
                yield from [name] if is_side else list(_destinations(graph, target, seen)) or [name]
