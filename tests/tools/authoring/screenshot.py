"""Trains in the page on the miniature world and photographs the result for the README: docs/screenshot.jpg."""
from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from demonstration.__main__ import WORKFLOW
from demonstration.options import parse
from demonstration.setting import prepare
from environment import chromium
from support.browser import launch, open_page
from support.paths import PACK
from support.server import ComfyServer
from support.workflows import with_values

from .build import LARGE, picture
from .catalog import ALL_GRAPHS

LONGEST = 1800


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
                shown = next(graph for graph in ALL_GRAPHS if graph.path == WORKFLOW)
                picture(page, shown.pictured, width=1600).save(PACK / "docs" / "screenshot.jpg", quality=85)
        finally:
            server.stop()


if __name__ == "__main__":
    main(sys.argv[1:])
