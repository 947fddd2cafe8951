#!/usr/bin/env python3
"""How much memory many pictures take: read by Subject, made into their variants, and encoded.

Photos of noise in a folder; MiB beyond what the process held before, with the pictures to look at and all latents. What
a VAE takes is left out: a mean over 8 × 8 pixels stands in for it.
"""
from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # before torch

import argparse
import resource
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

sys.path[:1] = [str(Path(__file__).resolve().parents[2] / room) for room in (".", "lab", "tools")]

from support import inprocess


def main() -> None:
    """Prints the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--size", type=int, default=1024, help="pixels of the photos' and the variants' sides")
    parser.add_argument("--variants", type=int, default=16)
    options = parser.parse_args()
    with inprocess.started() as base:
        save_photos(base / "input" / "photos", options.pictures, options.size)
        with torch.inference_mode():
            peak = peak_mib(inprocess.load_checkpoint(inprocess.provide_checkpoint("sd15", base)), options)
    print(f"{options.pictures} pictures of {options.size} px, {options.variants} variants of each: "
          f"figure subject_peak_mib {peak:.0f}")


def save_photos(folder: Path, count: int, size: int) -> None:
    """JPEG files of coarse noise."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg")


def peak_mib(checkpoint, options: argparse.Namespace) -> float:
    """MiB of the process at its peak, beyond those of before."""
    from personalize.nodes.text.concept import Concept
    from personalize.nodes.training.augment import Preparation
    from personalize.nodes.training.batch import Subject
    from personalize.nodes.training.dataset import encode_pictures
    from personalize.nodes.training.images import prepare
    from support.pictures import sources_from_files

    model, _, vae = checkpoint
    vae.encode = as_latents
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    how = Preparation(options.size, "crop", "as released", options.variants, 0)
    ready = prepare(sources_from_files("photos", "", how.enough), how)
    data = encode_pictures(vae, model, [Subject(Concept("<my-dog>", "dog", "dog"), ready.pictures)], 0)
    assert len(data.pictures[0]) == options.pictures and len(data.pictures[0][0].latents) == options.variants
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def as_latents(pixels: torch.Tensor) -> torch.Tensor:
    """(V, 4, h, w) of pixels (V, 8·h, 8·w, 3)."""
    means = torch.stack([F.avg_pool2d(each.movedim(-1, 0), 8) for each in pixels])
    return torch.cat([means, means[:, :1]], dim=1)


if __name__ == "__main__":
    main()
