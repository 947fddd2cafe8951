#!/usr/bin/env python3
"""Draws a contact sheet: python3 tests/lab/miniature/sheet.py OUT.png [--subjects] [--seed N] [--columns N] [--rows
N]"""
from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = "miniature"

from PIL import Image

from miniature.factors import Scene, sample_scene
from miniature.renderer import SIZE, draw
from miniature.subjects import public_subjects

GAP = 3


def sheet(rows: list[list[Scene]]) -> Image.Image:
    """One drawn picture a scene, in rows, on white."""
    step = SIZE + GAP
    picture = Image.new("RGB", (max(map(len, rows)) * step - GAP, len(rows) * step - GAP), "white")
    for y, row in enumerate(rows):
        for x, scene in enumerate(row):
            picture.paste(Image.fromarray(draw(scene).picture), (x * step, y * step))
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--subjects", action="store_true", help="the public novel subjects instead of random scenes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--rows", type=int, default=4)
    wanted = parser.parse_args()
    rng = random.Random(wanted.seed)
    rows = [[sample_scene(rng) for _ in range(wanted.columns)] for _ in range(wanted.rows)]
    if wanted.subjects:
        rows = [[scene for scenes in subject.sets.values() for scene in scenes] for subject in public_subjects()]
    sheet(rows).save(wanted.out)


if __name__ == "__main__":
    main()
