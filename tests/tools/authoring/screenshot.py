"""Trains in the page on the miniature world and photographs the result for the README: docs/screenshot.jpg."""
from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path

from PIL import Image

from demonstration.__main__ import WORKFLOW
from demonstration.options import parse
from demonstration.setting import prepare
from environment import chromium
from support.browser import ComfyPage, launch, open_page
from support.paths import PACK
from support.server import ComfyServer
from support.workflows import with_values

from .build import LARGE

LONGEST = 1800
WIDTH = 1600
SHOW = """count => {
    const {canvas, graph} = window.app, view = canvas.canvas.getBoundingClientRect(), scale = 0.62;
    const boxes = graph.groups.slice(0, count).map(group => group.boundingRect);
    const [left, top] = [0, 1].map(axis => Math.min(...boxes.map(box => box[axis])));
    const width = Math.max(...boxes.map(box => box[0] + box[2])) - left;
    const height = Math.max(...boxes.map(box => box[1] + box[3])) - top;
    Object.assign(canvas.ds, {scale, offset: [200 - left, 300 - top]});
    canvas.setDirty(true, true);
    return {x: view.x + 200 * scale, y: view.y + 300 * scale, width: width * scale, height: height * scale};
}"""


def picture(page: ComfyPage, groups: int = 3) -> Image.Image:
    """The first groups of the canvas, `WIDTH` wide."""
    clip = page.js(SHOW, groups)
    page.settle(800)
    shot = Image.open(io.BytesIO(page.page.screenshot(clip=clip))).convert("RGB")
    return shot.resize((WIDTH, round(shot.height * WIDTH / shot.width)), Image.Resampling.LANCZOS)


def main(arguments: list[str]) -> None:
    """Takes the demo's arguments, such as --steps 300."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        setting = prepare(parse(arguments), base)
        server = ComfyServer(base, setting.packs)
        try:
            values = {"CheckpointLoaderSimple": {"ckpt_name": setting.checkpoint}, **setting.values}
            document = with_values(json.loads(WORKFLOW.read_text(encoding="utf-8")), server.get("/object_info"), values)
            with launch(chromium.find()) as browser, open_page(browser, server) as page:
                page.page.set_viewport_size(LARGE)
                page.load_workflow(document)
                page.run(LONGEST)
                page.settle(2000)
                picture(page).save(PACK / "docs" / "screenshot.jpg", quality=85)
        finally:
            server.stop()


if __name__ == "__main__":
    main(sys.argv[1:])
