#!/usr/bin/env python3
"""Measures what the papers claim on the miniature world: python3 tests/lab/bench/claims.py --technique core. See
README.md."""
from __future__ import annotations

import sys
from pathlib import Path

if sys.version_info < (3, 10):
    sys.exit("Python 3.10 or newer is needed; this is Python %d.%d." % sys.version_info[:2])

sys.path[:1] = [str(Path(__file__).resolve().parents[2] / room) for room in (".", "lab", "tools")]

from claims.options import parse
from environment.handover import set_up_and_run

if __name__ == "__main__":
    sys.exit(set_up_and_run(parse(), "claims"))
