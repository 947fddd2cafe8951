"""Lets the page see which pictures a folder holds, before anything runs."""
from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from ..foreign.text import shown_name
from ..page import answered
from .picture_files import EXAMPLES, folder_contents, picture_folder

ROUTES = web.RouteTableDef()
MOST_SHOWN = 500


@ROUTES.get("/personalize/pictures")
@answered
async def list_pictures(request: web.Request) -> dict[str, Any]:
    """?folder=my-dog → {"pictures": [names], "count": of all, "place": where, "message": sentence or "",
    "left_out": sentence or ""}.

    left_out: which files of the folder are not used, and why.
    place: "input", "example" for pictures that come with the pack, or "nowhere".
    """
    return await asyncio.to_thread(_listing, request.query.get("folder", ""))


def _listing(folder: str) -> dict[str, Any]:
    names, place, message, left_out = [], "nowhere", "", ""
    try:
        place = "example" if picture_folder(folder).is_relative_to(EXAMPLES) else "input"
        contents = folder_contents(folder)
        names, left_out = [path.name for path in contents.pictures], contents.left_out_sentence()
    except (ValueError, OSError) as error:
        message = str(error)
    if len(names) > MOST_SHOWN:
        message = (f"Folder '{shown_name(folder)}' holds {len(names)} pictures; the first {MOST_SHOWN} are shown. "
                   "Choose a folder that holds only those of your subject.")
    return {"pictures": names[:MOST_SHOWN], "count": len(names), "place": place, "message": message,
            "left_out": left_out}
