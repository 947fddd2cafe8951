"""What the page asks about a training before it runs: what it needs, and which of its settings cannot act."""
from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiohttp import web

from ..api_prompt import LARGEST_PROMPT
from ..page import RequestRefused, answered, json_object, text_in
from .foreseen import Graph, NotForeseen
from .idle import idle_settings

log = logging.getLogger("personalize")
ROUTES = web.RouteTableDef()


@ROUTES.post("/personalize/estimate")
@answered
async def estimate(request: web.Request) -> dict[str, Any]:
    """{"prompt": graph in API format, "node": id of a Train node} → {"idle": [sentences], "problem": sentence or "",
    "need": None or {"memory", "available": bytes, "seconds", "proposal": {widget: value, "memory", "seconds"}}}.

    idle: settings that cannot act. problem: what a run would end with. need: None where only a run can tell.
    """
    body = await json_object(request, LARGEST_PROMPT)
    node = text_in(body, "node")
    if not isinstance(body.get("prompt"), dict):
        raise RequestRefused("The request's body has no object 'prompt'.")
    return await asyncio.to_thread(_told, Graph(body["prompt"]), node)


def _told(graph: Graph, node: str) -> dict[str, Any]:
    told: dict[str, Any] = {"idle": [], "problem": "", "need": None}
    try:
        told["idle"] = idle_settings(graph.training(node).training)
        told["need"] = _need(graph, node)
    except NotForeseen:
        pass
    except ValueError as error:
        told["problem"] = str(error)
    except Exception:  # a graph may say anything
        log.debug("A graph could not be looked at before it runs.", exc_info=True)
    return told


def _need(graph: Graph, node: str) -> dict[str, Any]:
    from .estimate import estimated  # what it counts with is loaded when it is asked for

    found, proposal = estimated(graph, node)
    return {"memory": found.memory, "available": found.available, "seconds": found.seconds, "proposal": proposal}
