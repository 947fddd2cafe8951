"""The page, where ComfyUI runs with its server: messages to it, and answers to what it asks."""
from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import sys
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from aiohttp import web

from .foreign.text import short

LARGEST_BODY = 2**16
LONGEST_ECHO = 80


class RequestRefused(Exception):
    """A request that is answered with a sentence. status: of HTTP, 400 to 499."""

    def __init__(self, sentence: str, status: int = 400):
        super().__init__(sentence)
        self.status = status


def running_server() -> Any | None:
    """ComfyUI's PromptServer, or None where there is none. Its module is not imported for this: a server that runs has
    been."""
    module = sys.modules.get("server")
    return getattr(getattr(module, "PromptServer", None), "instance", None)


def tell(event: str, data: Any) -> None:
    """Sends a message to every page that is open; from any thread."""
    server = running_server()
    if server is not None:
        with contextlib.suppress(RuntimeError):  # a server that is shutting down has closed its event loop
            server.send_sync(event, data)


def add_routes(routes: Iterable[web.RouteDef]) -> None:
    """Adds addresses to ComfyUI's server; to be called while custom nodes are loaded."""
    server = running_server()
    if server is not None:
        for route in routes:
            server.routes.route(route.method, route.path, **route.kwargs)(route.handler)


def answered(handle: Callable[[web.Request], Awaitable[Any]]) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Makes a handler's return value a JSON answer, and RequestRefused {"ok": false, "message": sentence}."""
    @functools.wraps(handle)
    async def respond(request: web.Request) -> web.Response:
        try:
            answer, status = await handle(request), 200
        except RequestRefused as refused:
            answer, status = {"ok": False, "message": str(refused)}, refused.status
        return web.json_response(text=await asyncio.to_thread(json.dumps, answer), status=status)

    return respond


async def json_object(request: web.Request, most: int = LARGEST_BODY) -> dict[str, Any]:
    """The JSON object in the request's body. Raises RequestRefused without one, or for more than `most` bytes."""
    if (request.content_length or 0) > most:
        raise _too_long(most)
    try:
        await request.content.readexactly(most + 1)
        raise _too_long(most)
    except asyncio.IncompleteReadError as whole:
        body = whole.partial
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestRefused("The request's body is not JSON.") from error
    if not isinstance(data, dict):
        raise RequestRefused("The request's body is not a JSON object.")
    return data


def text_in(data: dict[str, Any], name: str) -> str:
    """The text under `name`. Raises RequestRefused if there is none."""
    if not isinstance(data.get(name), str):
        raise RequestRefused(f"The request's body has no text '{name}'.")
    return data[name]


def shortened(text: str) -> str:
    """What was asked for, at a length for a sentence."""
    return short(text, LONGEST_ECHO + 1)


def _too_long(most: int) -> RequestRefused:
    return RequestRefused(f"The request's body is longer than {most // 1024} KB.", 413)
