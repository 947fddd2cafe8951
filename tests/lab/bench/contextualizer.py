#!/usr/bin/env python3
"""Makes the miniature's contextualizer, for the claims of the masked-language-model loss. See README.md."""
from __future__ import annotations

import sys
from pathlib import Path

if sys.version_info < (3, 10):
    sys.exit("Python 3.10 or newer is needed; this is Python %d.%d." % sys.version_info[:2])

sys.path[:1] = [str(Path(__file__).resolve().parents[2] / room) for room in (".", "lab", "tools")]

from claims.options import parse_contextualizer
from environment.handover import set_up_and_run

if __name__ == "__main__":
    sys.exit(set_up_and_run(parse_contextualizer(), "claims.contextualizer"))
