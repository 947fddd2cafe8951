"""What runs have on the disk, to compare them bit by bit."""
from __future__ import annotations

import csv
import json
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

PLACES = ("output/personalize", "models/embeddings", "models/loras", "models/vico")
UNFINISHED = ".personalize-*.tmp"


def files_of(base: Path, name: str) -> dict[str, Path]:
    """"place/file" → path of every file in the folders of the run that Train calls `name`."""
    return {f"{place}/{path.name}": path for place in PLACES for path in (base / place).glob(f"{name}-????????/*")
            if not path.match(UNFINISHED)}


def unreadable(path: Path) -> str | None:
    """What is wrong with a file that should be whole."""
    try:
        if path.suffix == ".safetensors":
            if not all(torch.isfinite(tensor).all() for tensor in load_file(path).values()):
                return f"{path.name} holds values that are no numbers"
        elif path.suffix == ".json":
            json.loads(path.read_text("utf-8"))
        elif path.suffix == ".csv":
            with path.open(newline="") as file:
                list(csv.DictReader(file))
        elif path.suffix == ".png":
            Image.open(path).load()
        else:
            return f"{path.name} should not be there"
    except Exception as error:
        return f"{path.name} is not whole: {error}"
    return None


def differences(found: dict[str, Path], wanted: dict[str, Path]) -> list[str]:
    """What two runs of other names differ in: files, tensors, losses, saved steps. Previews only have to be there:
    those of ViCo look at a reference picture that the run has drawn so far."""
    told = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    told += [f"{name} is one too many" for name in found.keys() - wanted.keys()]
    return told + [
        f"{name} differs" for name in found.keys() & wanted.keys() if _content(found[name]) != _content(wanted[name])
    ]


def _content(path: Path) -> object:
    if path.suffix == ".safetensors":
        return {name: (tensor.dtype, tensor.shape, tensor.numpy().tobytes())
                for name, tensor in load_file(path).items()}
    if path.suffix == ".json":
        report = json.loads(path.read_text("utf-8"))
        return [record["loss"] for record in report["history"]], [saved["step"] for saved in report["saved"]]
    return path.suffix if path.suffix == ".png" else path.read_bytes()
