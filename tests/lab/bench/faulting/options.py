"""The command line of the faults. Standard library only."""
from __future__ import annotations

import argparse
import os


def parse() -> argparse.Namespace:
    """The options."""
    options = argparse.ArgumentParser(
        prog="faults.py",
        description="Kills real servers in the middle of trainings, lets "
        "every write of a training fail, and gives every loader odd files; one line a figure.",
    )
    options.add_argument("--kills", type=int, default=100, metavar="N", help="servers to kill (default 100)")
    options.add_argument("--files", type=int, default=10_000, metavar="N", help="odd files (default 10000)")
    options.add_argument("--without-disks", action="store_true", help="no failing writes")
    options.add_argument("--seed", type=int, default=0, help="of moments and files (default 0)")
    options.add_argument("--comfyui", metavar="PATH", default=os.environ.get("COMFYUI_PATH"),
                         help="use this ComfyUI (also: COMFYUI_PATH); nothing is installed into it")
    options.add_argument("--python", metavar="PATH", help="the Python that runs it, where it is not found beside it")
    return options.parse_args()
