"""ComfyUI as a library: no server, and none that could be imported. Trains two steps and tells what happened as JSON.

Run as `python headless.py BASE`, with COMFYUI_PATH set.
"""
from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.modules["server"] = None  # `import server` now fails

from support import inprocess, pack


def main(base: Path) -> None:
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s %(message)s", level=logging.INFO)
    inprocess.start(base)
    pack.make_importable()
    from personalize.nodes import node_classes
    from personalize.nodes.notice import notice
    from support.trainings import make_job, run

    ids = [node.GET_SCHEMA().node_id for node in node_classes()]
    checkpoint = inprocess.load_checkpoint(inprocess.provide_checkpoint("sd15", base))
    outcome = run(make_job(checkpoint, "headless", steps=2))
    notice("A sentence for the log.")
    print(json.dumps({"nodes": ids, "steps": len(outcome.report["history"]), "message": outcome.report["message"]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
