#!/usr/bin/env python3
"""Are all results the same, bit for bit, before and after a change that should not change them?

    COMFYUI_PATH=… python tests/lab/bench/template_hashes.py --keep before.json     (before)
    COMFYUI_PATH=… python tests/lab/bench/template_hashes.py --against before.json  (after, on the same machine)

Runs every workflow of the pack on small random checkpoints of SD1.5, SD2.1 (v-prediction) and SDXL in a real server,
and hashes what comes out: pixels of pictures, losses and gradient norms, tensors of saved files. The names of files are
compared too, without the part that stands for the settings. SD2.1 and SDXL run what needs no files made for SD1.x.
"""
from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # before torch

import argparse
import hashlib
import io
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from safetensors.torch import load_file

sys.path[:1] = [str(Path(__file__).resolve().parents[2] / room) for room in (".", "lab", "tools")]

from support import inprocess
from support.paths import PACK, TESTS
from support.server import ComfyServer
from support.templates import SHIPPED, provide_files, quick
from support.workflows import to_prompt

WIDTHS = {"sd15": {"clip_l": 32}, "sd21": {"clip_h": 40}, "sdxl": {"clip_l": 32, "clip_g": 48}}
ANY_KIND = ("Learn your subject", "Make", "See")  # how the names of workflows begin that any checkpoint runs
PLACES = ("output/personalize", "models/embeddings", "models/loras", "models/vico")


def main() -> int:
    """Hash, and keep or compare; 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, metavar="FILE", help="write the hashes")
    parser.add_argument("--against", type=Path, metavar="FILE", help="compare with hashes that were kept")
    parser.add_argument("--kinds", nargs="+", choices=WIDTHS, default=list(WIDTHS))
    parser.add_argument("--only", default="", metavar="NAME", help="workflows whose names hold this")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        inprocess.start(Path(base))  # to write the checkpoints
        found = {kind: dict(hashes_of(kind, options.only)) for kind in options.kinds}
    if options.keep:
        options.keep.write_text(json.dumps(found, indent=1))
    if not options.against:
        return 0
    kept = json.loads(options.against.read_text())
    different = [f"{kind} {workflow}: {name}" for kind, workflows in found.items()
                 for workflow, hashes in workflows.items()
                 for name in sorted(hashes.keys() | kept[kind][workflow].keys())
                 if hashes.get(name) != kept[kind][workflow].get(name)]
    compared = sum(len(hashes) for workflows in found.values() for hashes in workflows.values())
    print("\n".join(different))
    print(f"figure template_results_identical {compared - len(different)} of {compared}")
    return int(bool(different))


def hashes_of(kind: str, only: str) -> Iterator[tuple[str, dict[str, str]]]:
    """(workflow, {result: hash}) of all that run on a checkpoint of this kind, each workflow in a run of its own."""
    workflows = [path for path in SHIPPED if only in path.stem and (kind == "sd15" or path.stem.startswith(ANY_KIND))]
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        server = ComfyServer(base, {"personalize": PACK, "tiny_models": TESTS / "tiny"})
        try:
            provide_files(base, inprocess.provide_checkpoint(kind, base), WIDTHS[kind])
            definitions = server.get("/object_info")
            for path in workflows:
                there = set(files_in(base))
                run = server.run(to_prompt(quick(path, definitions), definitions))
                saved = [file for file in files_in(base) if file not in there]
                yield path.stem, {**pictures_in(run.outputs, server),
                                  **{name_of(file, base): content_of(file) for file in saved}}
        finally:
            server.stop()


def pictures_in(outputs: dict[str, dict], server) -> dict[str, str]:
    """{node and number: hash of the pixels}."""
    return {f"node {node} picture {number}": pixels(io.BytesIO(server.view(file)))
            for node, output in outputs.items() for number, file in enumerate(output.get("images", []))}


def files_in(base: Path) -> Iterator[Path]:
    """Everything in the folders that the pack saves into."""
    for place in PLACES:
        yield from (path for path in sorted((base / place).rglob("*")) if path.is_file())


def name_of(file: Path, base: Path) -> str:
    """Its path, without the eight hexadecimal digits of the settings."""
    return re.sub(r"-[0-9a-f]{8}(?=/)", "", str(file.relative_to(base)))


def content_of(file: Path) -> str:
    """Hash of tensors, of pixels, of a report's losses and norms, or of the bytes."""
    if file.suffix == ".safetensors":
        tensors = load_file(file)
        parts = [part for name in sorted(tensors) for part in (
            name.encode(), str(tensors[name].shape).encode(), tensors[name].float().numpy().tobytes())]
        return hashlib.sha256(b"".join(parts)).hexdigest()[:16]
    if file.suffix == ".png":
        return pixels(file)
    if file.suffix == ".json":
        return hashlib.sha256(json.dumps(without_time(json.loads(file.read_text())["history"])).encode()).hexdigest()[
            :16
        ]
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def pixels(file) -> str:
    """Hash of a picture's shape and bytes, without its metadata."""
    with Image.open(file) as picture:
        return hashlib.sha256(str(picture.size).encode() + picture.tobytes()).hexdigest()[:16]


def without_time(history: list[dict]) -> list[dict]:
    """A report's records without what a clock says."""
    return [{key: value for key, value in record.items() if key != "seconds_left"} for record in history]


if __name__ == "__main__":
    sys.exit(main())
