"""Pictures of what the templates give, for the template browser: drawn by the same techniques on the miniature world.

    python tests/lab/bench/claims.py --technique harmonize --subjects 1 --prompts 4 --out FOLDER    # also core, vico
    PYTHONPATH=tests:tests/tools:tests/lab .testenv/venv/bin/python -m authoring.thumbnails FOLDER
"""
from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file

from .catalog import template
from .subgraph import path_of_template

TILE, GAP, HEAD = 256, 12, 44
PAPER, INK = (248, 248, 246), (40, 40, 40)
SHOWN = {  # template -> (heading, method, number of the prompt) of each picture, from left to right
    "train_embedding_core": (("the subject", "truth", 2), ("before", "class-word", 2), ("the word, learned", "TI", 2)),
    "harmonize_ip_adapter": (
        ("the subject", "truth", 1), ("encoder alone", "baseline", 1), ("harmonized", "orchestration", 1)),
    "harmonize_blip_diffusion": (
        ("the subject", "truth", 1), ("encoder alone", "baseline", 1), ("harmonized", "both", 1)),
    "harmonize_elite": (("the subject", "truth", 1), ("encoder alone", "baseline", 1), ("harmonized", "both", 1)),
}


def pictures_of(folder: Path, method: str) -> list[Image.Image]:
    """What a method drew for the first subject, in the order of the prompts."""
    path = min((folder / "cells" / method).glob("00-*.safetensors"), key=lambda file: file.stat().st_mtime)
    kept = {name: tensor for name, tensor in load_file(path).items() if name.startswith("picture.")}
    ordered = [kept[name] for name in sorted(kept, key=lambda name: int(name.split(".")[1]))]
    return [Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()) for picture in ordered]


def thumbnail(columns: list[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures side by side, each with its heading."""
    page = Image.new("RGB", (GAP + len(columns) * (TILE + GAP), HEAD + TILE + GAP), PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(22)
    for number, (heading, picture) in enumerate(columns):
        left = GAP + number * (TILE + GAP)
        pen.text((left, 10), heading, INK, font)
        page.paste(picture.resize((TILE, TILE), Image.Resampling.BICUBIC), (left, HEAD))
    return page


def main(folder: Path) -> None:
    """Writes the thumbnails whose methods were drawn into this folder."""
    for name, columns in SHOWN.items():
        if all((folder / "cells" / method).is_dir() for _, method, _ in columns):
            shown = thumbnail([(text, pictures_of(folder, method)[number]) for text, method, number in columns])
            targets = [template(name), *([path_of_template()] if name == "train_embedding_core" else [])]
            for target in targets:
                shown.save(target.with_suffix(".jpg"), quality=88)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
