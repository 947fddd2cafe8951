"""Texts of the page in the languages that the pack has: locales/<language>/main.json, under "personalize"."""
from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from aiohttp import web

from .page import add_routes, answered

LOCALES = Path(__file__).parent.parent / "locales"
ENGLISH = "en"
ROUTES = web.RouteTableDef()


def serve() -> None:
    """Adds the address below to ComfyUI's server."""
    add_routes(ROUTES)  # ty: ignore[invalid-argument-type]  all are RouteDef


@ROUTES.get("/personalize/texts/{language}")
@answered
async def page_texts(request: web.Request) -> dict[str, Any]:
    """{language: {section: {key: text}}} of English and, where the pack has it, of the language asked for.

    ComfyUI gives the same texts by /i18n, but together with every pack's, of which a broken one would take ours along.
    """
    return await asyncio.to_thread(_texts, {ENGLISH, request.match_info["language"]})


def _texts(wanted: set[str]) -> dict[str, Any]:
    known = [folder.name for folder in LOCALES.iterdir() if folder.name in wanted]
    return {language: json.loads((LOCALES / language / "main.json").read_text(encoding="utf-8"))["personalize"]
            for language in known}
