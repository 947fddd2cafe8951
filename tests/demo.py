#!/usr/bin/env python3
"""Shows the main job in a real ComfyUI: trains an embedding with CoRe, then draws with it by stock nodes."""
from __future__ import annotations

import sys

if sys.version_info < (3, 10):
    sys.exit("Python 3.10 or newer is needed; this is Python %d.%d." % sys.version_info[:2])

from demonstration.options import parse
from environment.handover import hand_over
from environment.report import SetupError, say
from environment.setup import prepare


def main() -> int:
    """Set up, then hand over to the Python that runs ComfyUI."""
    options = parse()
    try:
        environment = prepare(own_comfyui=options.comfyui, own_python=options.python)
    except SetupError as error:
        print(f"\n{error}", file=sys.stderr)
        return 2
    say(f"using ComfyUI {environment.version} in {environment.comfyui}")
    return hand_over(environment, "demonstration")


if __name__ == "__main__":
    sys.exit(main())
