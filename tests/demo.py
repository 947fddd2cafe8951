#!/usr/bin/env python3
"""Shows the main job in a real ComfyUI: trains an embedding with CoRe, then draws with it by stock nodes."""
from __future__ import annotations

import sys

if sys.version_info < (3, 10):
    sys.exit("Python 3.10 or newer is needed; this is Python %d.%d." % sys.version_info[:2])

import os
import subprocess
from pathlib import Path

from demonstration.options import parse
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
    variables = environment.variables()
    paths = [str(Path(__file__).resolve().parent), variables.get("PYTHONPATH", "")]
    variables["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    demonstration = subprocess.Popen([str(environment.python), "-m", "demonstration", *sys.argv[1:]], env=variables)
    while True:
        try:
            return demonstration.wait()
        except KeyboardInterrupt:  # it got Ctrl+C too, and ends ComfyUI
            continue


if __name__ == "__main__":
    sys.exit(main())
