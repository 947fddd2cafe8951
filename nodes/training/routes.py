"""What the page asks the server for while a run is in progress."""
from __future__ import annotations

from aiohttp import web

from server import PromptServer

from .presets import PRESETS
from .progress import Live
from .run_folder import saved_report

routes = PromptServer.instance.routes
COMMANDS = ("stop", "save", "sample")


@routes.post("/personalize/command")
async def command(request: web.Request) -> web.Response:
    """{"run", "command": "stop" | "save" | "sample"} → {"ok", "message"}."""
    body = await request.json()
    live = Live.find(str(body.get("run")))
    if body.get("command") not in COMMANDS:
        return web.json_response({"ok": False, "message": f"There is no command '{body.get('command')}'."}, status=400)
    if live is None:
        return web.json_response({"ok": False, "message": f"The run '{body.get('run')}' is not in progress."}, status=404)
    live.command(body["command"])
    return web.json_response({"ok": True, "message": "It is done after the current step."})


@routes.get("/personalize/runs/{run}")
async def report(request: web.Request) -> web.Response:
    """What a run has reported: so far while it is in progress, in all when it has ended; empty if there is no such run."""
    run = request.match_info["run"]
    live = Live.find(run)
    try:
        return web.json_response(live.report if live else saved_report(run))
    except ValueError as error:
        return web.json_response({"message": str(error)}, status=400)


@routes.get("/personalize/runs")
async def runs(request: web.Request) -> web.Response:
    """Runs in progress: [{"run", "name", "node"}]."""
    return web.json_response([{"run": live.run, "name": live.name, "node": live.node} for live in Live.in_progress()])


@routes.get("/personalize/presets")
async def presets(request: web.Request) -> web.Response:
    """Preset → {widget of Train: value}."""
    return web.json_response(PRESETS)
