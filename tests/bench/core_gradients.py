#!/usr/bin/env python3
"""Compares the gradients of CoRe's estimator and of its exact attention loss on the miniature world. See README.md."""
from __future__ import annotations

import sys
from pathlib import Path

if sys.version_info < (3, 10):
    sys.exit("Python 3.10 or newer is needed; this is Python %d.%d." % sys.version_info[:2])

sys.path[0] = str(Path(__file__).resolve().parents[1])

from claims.options import parse_gradients
from environment.handover import hand_over
from environment.report import SetupError
from environment.setup import prepare


def main() -> int:
    """Check the options, set up, then hand over to the Python that runs ComfyUI."""
    options = parse_gradients()
    try:
        environment = prepare(own_comfyui=options.comfyui, own_python=options.python)
    except SetupError as error:
        print(f"\n{error}", file=sys.stderr)
        return 2
    return hand_over(environment, "claims.estimator")


if __name__ == "__main__":
    sys.exit(main())
