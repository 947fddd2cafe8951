"""What the page asks the server for about runs in progress and ended."""
from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from aiohttp import web

from ..api_prompt import LARGEST_PROMPT
from ..page import RequestRefused, answered, json_object, shortened, text_in
from .export import export_step
from .presets import PRESETS
from .progress import RUNS, shown_report
from .run_folder import forget_stop, saved_report
from .told_plan import told

ROUTES = web.RouteTableDef()
COMMANDS = ("stop", "save", "sample")


@ROUTES.post("/personalize/command")
@answered
async def command(request: web.Request) -> dict[str, Any]:
    """{"run", "command": "stop" | "save" | "sample"} → {"ok", "message"}."""
    body = await json_object(request)
    run, wanted = text_in(body, "run"), text_in(body, "command")
    if wanted not in COMMANDS:
        raise RequestRefused(f"There is no command '{shortened(wanted)}'; there are {', '.join(COMMANDS)}.")
    live = RUNS.find(run)
    if live is None:
        raise RequestRefused(f"The run '{shortened(run)}' is not in progress.", 404)
    live.command(wanted)
    return {"ok": True, "message": "It is done after the current step."}


@ROUTES.post("/personalize/continue")
@answered
async def continue_run(request: web.Request) -> dict[str, Any]:
    """{"run"} → {"ok"}: a run that a person stopped is to go on with the next execution."""
    run = text_in(await json_object(request), "run")
    if RUNS.find(run):
        raise RequestRefused(f"The run '{shortened(run)}' is in progress.")
    try:
        await asyncio.to_thread(forget_stop, run)
    except (ValueError, OSError) as error:
        raise RequestRefused(str(error)) from error
    return {"ok": True}


@ROUTES.post("/personalize/plan")
@answered
async def plan(request: web.Request) -> dict[str, Any]:
    """{"prompt": in API format, "nodes": ids of Train nodes} → what each would do: {id: {...}}, see `told`."""
    body = await json_object(request, LARGEST_PROMPT)
    prompt: Any = body.get("prompt")
    nodes: Any = body.get("nodes")
    if not isinstance(prompt, dict) or not isinstance(nodes, list):
        raise RequestRefused("The request's body has no 'prompt' or no list 'nodes'.")
    return await asyncio.to_thread(lambda: {str(node): told(prompt, str(node)) for node in nodes})


@ROUTES.get("/personalize/runs/{run}")
@answered
async def report(request: web.Request) -> dict[str, Any]:
    """What a run has reported: so far while it is in progress, in all when it has ended; empty if there is no such run.

    Of a long history as many records as a chart can show.
    """
    run = request.match_info["run"]
    live = RUNS.find(run)
    try:
        return await asyncio.to_thread(lambda: shown_report(live.report if live else saved_report(run)))
    except ValueError as error:
        raise RequestRefused(str(error)) from error


@ROUTES.get("/personalize/runs")
@answered
async def runs(request: web.Request) -> list[dict[str, Any]]:
    """The last run of each node since ComfyUI was started: [{"run", "workflow", "node", "running"}]."""
    return [{**asdict(origin), "running": RUNS.find(origin.run) is not None} for origin in RUNS.last_of_nodes()]


@ROUTES.post("/personalize/export")
@answered
async def export(request: web.Request) -> dict[str, Any]:
    """{"run", "step"} → {"ok", "message"}: a saved step becomes a folder, and the message says where."""
    body = await json_object(request)
    run, step = text_in(body, "run"), body.get("step")
    if type(step) is not int or step < 0:
        raise RequestRefused("The request's body has no whole number 'step'.")
    try:
        exported = await asyncio.to_thread(export_step, run, step)
    except (ValueError, OSError) as error:
        raise RequestRefused(str(error)) from error
    return {"ok": True, "message": exported.sentence}


@ROUTES.get("/personalize/presets")
@answered
async def presets(request: web.Request) -> dict[str, Any]:
    """Preset → {widget of Train: value}."""
    return PRESETS
