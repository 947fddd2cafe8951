"""What the page asks the server for about words, before anything runs."""
from __future__ import annotations

import asyncio

from aiohttp import web

from ..page import answered
from .concept_files import load_concept
from .embedding_files import find_embedding

ROUTES = web.RouteTableDef()


@ROUTES.get("/personalize/concept")
@answered
async def concept(request: web.Request) -> dict[str, str]:
    """?embedding=my-dog.safetensors → {"placeholder", "class_words"}, as Load Concept reads them from the file;
    both empty where it cannot, as before the file is there."""
    try:
        found = await asyncio.to_thread(lambda: load_concept(find_embedding(request.query.get("embedding", ""))))
    except (ValueError, OSError):
        return {"placeholder": "", "class_words": ""}
    return {"placeholder": found.placeholder, "class_words": found.class_words}
