#!/usr/bin/env python3
"""Shows the main job in a real ComfyUI: trains an embedding with CoRe, then draws with it by stock nodes."""
from __future__ import annotations

import sys

if sys.version_info < (3, 10):
    sys.exit("Python 3.10 or newer is needed; this is Python %d.%d." % sys.version_info[:2])

from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parent / "tools"))

from demonstration.options import parse
from environment.handover import set_up_and_run

if __name__ == "__main__":
    sys.exit(set_up_and_run(parse(), "demonstration"))
