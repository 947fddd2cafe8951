"""Runs what the options ask for, in the environment that faults.py has set up."""
from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # before torch

import sys
import tempfile
from pathlib import Path

from support import inprocess, pack

from .options import parse


def main() -> int:
    """Prints a line for each figure, `figure faults_survived N of N` at the end; 0 if all was survived."""
    options = parse()
    figures: dict[str, tuple[int, int]] = {}
    with tempfile.TemporaryDirectory() as base:
        inprocess.start(Path(base))
        pack.make_importable()
        from support.executor import ComfyExecutor

        executor = ComfyExecutor()  # the server object that runs report to
        from . import disks, fuzz, kills

        if options.kills:
            figures["kills"] = kills.run(options.kills, options.seed)
        if not options.without_disks:
            figures |= {f"{fault}_disk": counted for fault, counted in disks.run().items()}
        if options.files:
            figures["odd_files"] = fuzz.run(options.files, options.seed)
        executor.close()
    for name, (survived, total) in figures.items():
        print(f"figure {name} {survived} of {total}")
    survived, total = map(sum, zip(*figures.values(), strict=True))
    print(f"figure faults_survived {survived} of {total}")
    return int(survived != total)


if __name__ == "__main__":
    sys.exit(main())
