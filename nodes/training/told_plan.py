"""What the page is told about what Run will do."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from .graph_signature import Graph, NotKnown


def told(prompt: Mapping[str, Any], node: str) -> dict[str, Any]:
    """Of a Train node of a prompt: {"act", "step", "steps", "why": as in `NextRun`, "run": its name, "" for a new one,
    "choice": {"step", "run", "void": "", "settings" or "deleted"}}.

    Or {"act": "incomplete", "node", "input"} with what must be connected first; {"act": "unknown", "node"} with the
    node that is the cause; or {"act": "refused", "node"} of a prompt that ComfyUI would not take.
    """
    graph = Graph(prompt)
    try:
        missing = graph.missing_input(node)
        if missing:
            return {"act": "incomplete", "node": missing[0], "input": missing[1]}
        choice = graph.choice(node)
        following, run = graph.next_run(node)
        void = choice.why_void(run)
        return {**asdict(following), "run": run, "choice": {"step": choice.step, "run": choice.run, "void": void}}
    except NotKnown as cause:
        return {"act": "unknown", "node": cause.node}
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return {"act": "refused", "node": node}
