#!/usr/bin/env python3
"""Trains the miniature world stage by stage; run it again and it continues where it stood.

    python3 tests/miniature/train.py --minutes 60 --comfyui PATH
"""
from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = "miniature"

import torch  # noqa: E402

from miniature.comfyui import device, use_comfyui  # noqa: E402

DEFAULT_FOLDER = Path.home() / ".cache" / "comfyui-personalize-miniature"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=("autoencoder",), help="only this stage")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after this many minutes (state is kept)")
    parser.add_argument("--out", type=Path, default=DEFAULT_FOLDER, help="folder of the run, outside the work tree")
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's root folder")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--start", type=Path, help="autoencoder weights to start from when the run is new")
    return parser.parse_args()


def main() -> int:
    wanted = _arguments()
    torch.set_num_threads(wanted.threads)
    use_comfyui(wanted.comfyui)
    from miniature.autoencoder import train_autoencoder

    began = time.monotonic()
    until = began + 60 * wanted.minutes

    def log(line: str) -> None:
        print(f"[{time.monotonic() - began:7.0f} s] {line}", flush=True)

    passed = train_autoencoder(wanted.out, until, device(), log, wanted.start)
    log(f"autoencoder gate {'passed' if passed else 'not passed yet: run this command again to continue'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
