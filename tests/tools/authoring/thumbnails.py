"""Pictures of what the templates give, for the template browser: drawn by the same techniques on the miniature world.

    python tests/lab/bench/claims.py --technique vico --subjects 1 --prompts 8 --out FOLDER/vico
    (also core, harmonize, vico_two, mlm and detex)
    COMFYUI_PATH=… PYTHONPATH=tests:tests/tools:tests/lab .testenv/venv/bin/python -m authoring.thumbnails FOLDER
"""
from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file

from support import inprocess, pack

from .catalog import template
from .subgraph import path_of_template

TILE, GAP, HEAD = 256, 12, 44
PAPER, INK = (248, 248, 246), (40, 40, 40)
Column = tuple[str, Image.Image]
SUBJECT = ("the subject", "truth")
SHOWN = {  # template -> technique, number of the prompt, and (heading, method) of each picture, from left to right
    "train_embedding_core": ("core", 4, (SUBJECT, ("before", "class-word"), ("the word, learned", "TI+CoRe"))),
    "core_two_stage": ("core", 5, (SUBJECT, ("stage 1: the word", "TI+CoRe"), ("stage 2: U-Net", "TI+CoRe+U-Net"))),
    "harmonize_ip_adapter": ("harmonize", 1, (
        SUBJECT, ("encoder alone", "baseline"), ("harmonized", "orchestration"))),
    "harmonize_blip_diffusion": ("harmonize", 0, (SUBJECT, ("encoder alone", "baseline"), ("harmonized", "both"))),
    "harmonize_elite": ("harmonize", 2, (SUBJECT, ("encoder alone", "baseline"), ("harmonized", "both"))),
    "vico_train": ("vico", 4, (SUBJECT, ("the word alone", "TI"), ("with its picture", "ViCo"))),
    "vico_apply": ("vico", 5, (
        SUBJECT, ("the word alone", "TI"), ("with a new picture", "ViCo-unseen-reference"))),
    "vico_two_references": ("vico", 5, (
        SUBJECT, ("with one picture", "ViCo-unseen-reference"), ("with two", "ViCo-two-references"))),
    "vico_two_objects": ("vico_two", 2, (
        ("before", "class-word"), ("two words, learned", "TI-with-nouns"), ("with their pictures", "ViCo-with-nouns"))),
    "diverse_context": ("mlm", 4, (SUBJECT, ("the word alone", "TI"), ("in diverse contexts", "TI+MLM"))),
    "xti": ("mlm", 4, (SUBJECT, ("one word", "TI"), ("one for each layer", "XTI"))),
    "custom_diffusion": ("mlm", 5, (SUBJECT, ("before", "class-word"), ("keys and values", "Custom-Diffusion"))),
    "dreambooth": ("mlm", 5, (SUBJECT, ("before", "class-word"), ("the whole model", "DreamBooth"))),
    "detex_train": ("detex", 4, (SUBJECT, ("before", "class-word"), ("the word, apart", "DETEX"))),
    "detex_keep": ("detex", 4, (
        ("subject alone", "DETEX"), ("pose kept", "DETEX-keep-pose"), ("background kept", "DETEX-keep-background"))),
    "detex_mix": ("detex", 4, (SUBJECT, ("subject alone", "DETEX"), ("both kept", "DETEX-keep-both"))),
}


def pictures_of(folder: Path, method: str) -> list[Image.Image]:
    """What a method drew for the first subject, in the order of the prompts."""
    path = min((folder / "cells" / method).glob("00-*.safetensors"), key=lambda file: file.stat().st_mtime)
    kept = {name: tensor for name, tensor in load_file(path).items() if name.startswith("picture.")}
    ordered = [kept[name] for name in sorted(kept, key=lambda name: int(name.split(".")[1]))]
    return [Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()) for picture in ordered]


def thumbnail(columns: list[Column]) -> Image.Image:
    """Pictures side by side, each with its heading."""
    page = Image.new("RGB", (GAP + len(columns) * (TILE + GAP), HEAD + TILE + GAP), PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(22)
    for number, (heading, picture) in enumerate(columns):
        left = GAP + number * (TILE + GAP)
        pen.text((left, 10), heading, INK, font)
        page.paste(picture.resize((TILE, TILE), Image.Resampling.BICUBIC), (left, HEAD))
    return page


def _from_cells(folder: Path) -> dict[str, list[Column]]:
    """Of the templates whose techniques were drawn into this folder."""
    found = {}
    for name, (technique, number, columns) in SHOWN.items():
        cells = folder / technique
        if all((cells / "cells" / method).is_dir() for _, method in columns):
            found[name] = [(heading, pictures_of(cells, method)[number]) for heading, method in columns]
    return found


def main(folder: Path) -> None:
    """Writes the thumbnails."""
    with tempfile.TemporaryDirectory() as base:
        inprocess.start(Path(base))
        pack.make_importable()
        from .thumbnail_runs import drawn_here

        for name, columns in {**_from_cells(folder), **drawn_here()}.items():
            shown = thumbnail(columns)
            targets = [template(name), *([path_of_template()] if name == "train_embedding_core" else [])]
            for target in targets:
                shown.save(target.with_suffix(".jpg"), quality=88)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
