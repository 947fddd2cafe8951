"""Lets the page see which pictures a folder holds, before anything runs."""
from __future__ import annotations

from aiohttp import web
from server import PromptServer

from .picture_files import EXAMPLES, picture_folder, picture_paths


async def list_pictures(request: web.Request) -> web.Response:
    """GET /personalize/pictures?folder=my-dog → {"pictures": [names], "place": where, "message": sentence or ""}.

    place: "input", "example" for pictures that come with the pack, or "nowhere".
    """
    folder = request.query.get("folder", "").strip()
    place = "nowhere"
    try:
        place = "example" if picture_folder(folder).is_relative_to(EXAMPLES) else "input"
        answer = {"pictures": [path.name for path in picture_paths(folder, "")], "place": place, "message": ""}
    except ValueError as error:
        answer = {"pictures": [], "place": place, "message": str(error)}
    return web.json_response(answer)


def register() -> None:
    """Adds the route to ComfyUI's server, where there is one."""
    running = getattr(PromptServer, "instance", None)
    if running is not None:
        running.routes.get("/personalize/pictures")(list_pictures)
