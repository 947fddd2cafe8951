"""Lets the page see which pictures a folder holds and what may spoil them, and edit their captions and masks."""
from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from aiohttp import web
from PIL import Image

from ..files import NotWritten, version_of
from ..foreign.text import shown_name
from ..page import RequestRefused, answered, json_object, text_in
from .augment import Fit
from .captions import read_caption
from .picture_check import NOTES, findings, looks_of
from .picture_files import EXAMPLES, folder_contents, line_of, name_in, picture_folder
from .picture_reading import mask_of, read_small
from .picture_writing import start_painting, take_painting, write_caption

ROUTES = web.RouteTableDef()
MOST_SHOWN = 500
SIZES = range(8, 8193)
OVERLAY, SHADE = 256, 0.7  # pixels on the shorter side, opacity outside of the subject


@ROUTES.get("/personalize/pictures")
@answered
async def list_pictures(request: web.Request) -> dict[str, Any]:
    """?folder=my-dog → {"pictures": [names], "count": of all, "place": where, "message": sentence or "",
    "left_out": sentence or ""}.

    left_out: which files of the folder are not used, and why.
    place: "input", "example" for pictures that come with the pack, or "nowhere".
    """
    return await asyncio.to_thread(_listing, request.query.get("folder", ""))


@ROUTES.post("/personalize/pictures/about")
@answered
async def about(request: web.Request) -> dict[str, Any]:
    """{"folder", "names": one a line, or "" for all} → {"captions": {picture: text}, "masks": {picture: version},
    "message"}: those that lie in files beside the pictures. message: why the pictures cannot be had, or "".
    """
    return await _asked(request, lambda body: _about(text_in(body, "folder"), text_in(body, "names")))


@ROUTES.post("/personalize/pictures/check")
@answered
async def check(request: web.Request) -> dict[str, Any]:
    """{"folder", "names", "size", "fit", "augmentation"} → {"findings": [{"code", "values", "sentence", "pictures",
    "is_note"}], "sizes": {picture: [width, height]}, "masked": [pictures with a mask in a file or by transparency]}.

    findings: null if the pictures cannot be had.
    """
    return await _asked(request, _checked)


@ROUTES.post("/personalize/pictures/caption")
@answered
async def save_caption(request: web.Request) -> dict[str, Any]:
    """{"folder", "name", "text"} → {"ok": true}; saved beside the picture."""
    def save(body: dict[str, Any]) -> dict[str, Any]:
        write_caption(text_in(body, "folder"), text_in(body, "name"), text_in(body, "text"))
        return {"ok": True}

    return await _asked(request, save)


@ROUTES.post("/personalize/pictures/painting")
@answered
async def paint(request: web.Request) -> dict[str, Any]:
    """{"folder", "name"} → {"filename", "subfolder", "type"} of a copy for ComfyUI's mask editor."""
    return await _asked(request, lambda body: start_painting(text_in(body, "folder"), text_in(body, "name")))


@ROUTES.post("/personalize/pictures/mask")
@answered
async def save_mask(request: web.Request) -> dict[str, Any]:
    """{"folder", "name", "painted": {"filename", "subfolder", "type"}} → {"masked": whether anything was painted}."""
    return await _asked(request, lambda body: {"masked": take_painting(
        text_in(body, "folder"), text_in(body, "name"), body.get("painted"))})


@ROUTES.get("/personalize/pictures/mask")
async def shade(request: web.Request) -> web.Response:
    """?folder=my-dog&name=1.jpg → a PNG to lay over the picture, dark where the mask is not."""
    query = request.query
    try:
        data = await asyncio.to_thread(_shade, query.get("folder", ""), query.get("name", ""))
    except (ValueError, OSError) as error:
        return web.Response(status=404, text=str(error))
    return web.Response(body=data, content_type="image/png", headers={"Cache-Control": "no-cache"})


async def _asked(request: web.Request, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """The answer to a request's body, made in a thread of its own."""
    body = await json_object(request)
    try:
        return await asyncio.to_thread(answer, body)
    except (ValueError, NotWritten) as error:
        raise RequestRefused(str(error)) from error


def _about(folder: str, names: str) -> dict[str, Any]:
    try:
        contents, root = folder_contents(folder, names), picture_folder(folder)
    except ValueError as error:
        return {"captions": {}, "masks": {}, "message": str(error)}
    captions = {}
    for picture, file in contents.captions.items():
        try:
            captions[name_in(root, picture)] = read_caption(file)
        except ValueError:  # the run says it; the page shows that there is one
            captions[name_in(root, picture)] = ""
    return {"captions": captions, "masks": {name_in(root, picture): _version(file)
                                            for picture, file in contents.masks.items()}, "message": ""}


def _version(file: Path) -> str:
    return hashlib.sha256(version_of(file).encode("utf-8", "surrogateescape")).hexdigest()[:12]


def _checked(body: dict[str, Any]) -> dict[str, Any]:
    folder, names, fit, size = text_in(body, "folder"), text_in(body, "names"), body.get("fit"), body.get("size")
    if fit not in get_args(Fit) or not isinstance(size, int) or size not in SIZES:
        raise RequestRefused(f"The request's body needs a fit ({', '.join(get_args(Fit))}) and a size in pixels.")
    try:
        looks = looks_of(folder_contents(folder, names), picture_folder(folder), size)
    except ValueError:  # `about` says why
        return {"findings": None, "sizes": {}, "masked": []}
    good = {name: look for name, look in looks.items() if not isinstance(look, str)}
    drawn = body.get("augmentation") == "as released"
    found = [{"code": one.code, "values": one.values, "sentence": one.sentence, "pictures": one.pictures,
              "is_note": one.code in NOTES} for one in findings(looks, size, cast(Fit, fit), drawn)]
    return {"findings": found, "sizes": {name: [look.width, look.height] for name, look in good.items()},
            "masked": [name for name, look in good.items() if look.mask]}


def _shade(folder: str, name: str) -> bytes:
    contents = folder_contents(folder, line_of(name))
    [picture] = contents.pictures
    small, _ = read_small(picture, OVERLAY)
    mask = mask_of(small, contents.masks.get(picture))
    if mask is None:
        raise ValueError(f"{shown_name(name)} has no mask.")
    dark = Image.new("RGBA", small.size)
    dark.putalpha(Image.fromarray(((1 - mask) * 255 * SHADE).round().astype(np.uint8)))
    data = io.BytesIO()
    dark.save(data, "PNG", compress_level=1)
    return data.getvalue()


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
