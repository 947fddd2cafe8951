#!/usr/bin/env python3
"""Trains the miniature world stage by stage; run it again and it continues where it stood.

    python3 tests/lab/miniature/train.py --minutes 60 --comfyui PATH
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = "miniature"

import torch

from miniature.comfyui import device, use_comfyui
from miniature.deadline import Deadline

WEIGHTS = Path(__file__).parent / "weights"
FAMILIES = {"sd": "miniature", "sdxl": "miniature_xl", "zimage": "miniature_flow"}
NOT_YET = "not passed yet: run this command again to continue"
DEFAULT_FOLDER = Path.home() / ".cache" / "comfyui-personalize-miniature"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=("autoencoder", "oracle", "diffusion"), help="only this stage")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after this many minutes (state is kept)")
    parser.add_argument("--out", type=Path, default=DEFAULT_FOLDER, help="folder of the run, outside the work tree")
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's root folder")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--start", type=Path, default=WEIGHTS, help="folder of weights from which a new run starts")
    parser.add_argument("--autoencoder-steps", type=int, help="length of the stage; give more to go on after its end")
    parser.add_argument("--decoder-only", action="store_true", help="autoencoder stage: leave the encoder as it is")
    parser.add_argument("--oracle-steps", type=int, help="likewise")
    parser.add_argument("--pictures", type=int, help="likewise, rows that the diffusion stage sees")
    parser.add_argument("--family", choices=FAMILIES, default="sd", help="diffusion stage: which topology (default sd)")
    parser.add_argument(
        "--teach-pictures",
        type=int,
        default=0,
        metavar="STEPS",
        help="diffusion stage: begin by teaching the picture encoder the words that the text encoder knows "
        "(1300 once colours begin to follow the prompt)",
    )
    parser.add_argument("--batch", type=int, default=16, help="rows a step of the diffusion stage")
    parser.add_argument("--shards", type=int, default=24, help="latent shards of 2048 scenes of the diffusion stage")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw latent shards (0: this one)")
    return parser.parse_args()


def _autoencoder(wanted: argparse.Namespace, deadline: Deadline) -> bool:
    from miniature.autoencoder import STEPS, train_autoencoder

    passed = train_autoencoder(wanted.out, deadline, device(), wanted.start / "autoencoder.safetensors",
                               wanted.autoencoder_steps or STEPS, wanted.decoder_only)
    deadline.log(f"autoencoder gate {'passed' if passed else NOT_YET}")
    return passed


def _oracle(wanted: argparse.Namespace, deadline: Deadline) -> bool:
    from miniature.oracle_training import STEPS, train_oracle

    file = wanted.out / "autoencoder.safetensors"
    steps = wanted.oracle_steps or STEPS
    passed = train_oracle(wanted.out, deadline, device(), file if file.is_file() else None,
                          wanted.start / "oracle.safetensors", steps)
    deadline.log(f"oracle gate {'passed' if passed else NOT_YET}")
    return passed


def _diffusion(wanted: argparse.Namespace, deadline: Deadline) -> bool:
    from miniature.diffusion_training import PICTURES, train_diffusion

    name = FAMILIES[wanted.family]
    passed = train_diffusion(wanted.out, deadline, device(), wanted.out / "autoencoder.safetensors",
                             wanted.out / "oracle.safetensors", name=name,
                             start=wanted.start / f"{name}.safetensors", batch=wanted.batch,
                             shards=wanted.shards, workers=wanted.workers, pictures=wanted.pictures or PICTURES,
                             teach=wanted.teach_pictures)
    deadline.log(f"diffusion gate {'passed' if passed else NOT_YET}")
    return passed


def main() -> int:
    wanted = _arguments()
    torch.set_num_threads(wanted.threads)
    try:
        use_comfyui(wanted.comfyui)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    deadline = Deadline(wanted.minutes).listen()
    if wanted.stage in (None, "autoencoder") and not _autoencoder(wanted, deadline):
        return 0
    if wanted.stage in (None, "oracle") and not _oracle(wanted, deadline):
        return 0
    if wanted.stage in (None, "diffusion"):
        _diffusion(wanted, deadline)
    return 0


if __name__ == "__main__":
    sys.exit(main())
