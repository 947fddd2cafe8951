"""Lets the page show the training pictures that a file of DETEX holds."""
from __future__ import annotations

import asyncio
import base64
from typing import Any

from aiohttp import web

from ...model_files import find_file
from ...page import answered
from .files import FOLDER, read_about, read_thumbnails

ROUTES = web.RouteTableDef()


@ROUTES.get("/personalize/detex/pictures")
@answered
async def pictures(request: web.Request) -> dict[str, Any]:
    """?file=… → {"pictures": [data URLs], "count": of them, "pose_is", "message": why there are none, or ""}."""
    return await asyncio.to_thread(_shown, request.query.get("file", ""))


def _shown(name: str) -> dict[str, Any]:
    try:
        path = find_file(FOLDER, name)
        about, thumbnails = read_about(path), read_thumbnails(path)
    except (ValueError, OSError) as error:
        return {"pictures": [], "count": 0, "pose_is": "", "message": str(error)}
    return {"pictures": [_data_url(each) for each in thumbnails], "count": len(thumbnails), "pose_is": about.pose_is,
            "message": ""}


def _data_url(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
