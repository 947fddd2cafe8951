"""The pictures of a run on the disk: those that were drawn, and photographs to compare them with."""
from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin
from torch import Tensor

from ..files import write_file
from ..foreign.text import short
from ..run_files import RUNS, RunFile, output_folder
from .validation import MOST_LETTERS, Scene

MOST_PHOTOGRAPHS = 8
_ABOUT = "personalize"  # what a drawn picture's file says of itself


def save_drawn(run: str, picture: Tensor, step: int, number: int, scene: Scene) -> dict[str, Any]:
    """Writes picture `number` (from 0) of a step, (H, W, 3) in 0…1; returns its entry in the report.

    The entry: {step, image: how the page asks for it, prompt, noise}. Raises NotWritten.
    """
    about = {"prompt": short(scene.prompt, MOST_LETTERS), "noise": scene.noise}
    said = PngImagePlugin.PngInfo()
    said.add_itxt(_ABOUT, json.dumps(about))
    path = output_folder(run) / f"preview-{step:06d}{f'-{number}' * (number > 0)}.png"
    write_file(path, lambda unfinished: _image(picture).save(unfinished, format="PNG", pnginfo=said))
    return {"step": step, "image": image_of(run, path.name), **about}


def save_photograph(run: str, picture: Tensor, number: int) -> dict[str, str]:
    """Writes photograph `number` (from 1) of the subjects, (H, W, 3) in 0…1; returns how the page asks for it.

    Raises NotWritten.
    """
    path = output_folder(run) / f"photograph-{number}.jpg"
    write_file(path, lambda unfinished: _image(picture).save(unfinished, format="JPEG", quality=92))
    return image_of(run, path.name)


def drawn_entry(run: str, file: RunFile) -> dict[str, Any]:
    """The entry in a report of a drawn picture that none names, as its file says."""
    about: Mapping[str, Any] = {}
    try:
        with Image.open(file.path) as image:
            about = json.loads(getattr(image, "text", {}).get(_ABOUT, "{}"))
        scene = {"prompt": short(str(about.get("prompt", "")), MOST_LETTERS), "noise": int(about.get("noise", 0))}
    except (OSError, ValueError, TypeError, AttributeError, SyntaxError):
        scene = {}
    return {"step": file.step, "image": image_of(run, file.path.name), **scene}


def scene_of(entry: Mapping[str, Any]) -> tuple[str, int]:
    """Prompt and noise of an entry in a report, as `save_drawn` writes it."""
    return entry.get("prompt", ""), entry.get("noise", 0)


def photographs_of(run: str) -> list[dict[str, str]]:
    """Photographs that are there, in order, as `save_photograph` returned them."""
    names = (f"photograph-{number}.jpg" for number in range(1, MOST_PHOTOGRAPHS + 1))
    return [image_of(run, name) for name in names if (output_folder(run) / name).is_file()]


def in_order(entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """By steps, those of a step as they were drawn."""
    return sorted(map(dict, entries), key=lambda entry: (entry["step"], _number(entry)))


def image_of(run: str, name: str) -> dict[str, str]:
    """How the page asks the server for a picture of a run."""
    return {"filename": name, "subfolder": f"{RUNS}/{run}", "type": "output"}


def _number(entry: Mapping[str, Any]) -> int:
    """Of a drawn picture among those of its step: the 3 in preview-000050-3.png."""
    last = Path(entry["image"]["filename"]).stem.split("-")[2:]
    return int(last[0]) if last and last[0].isdecimal() else 0


def _image(picture: Tensor) -> Image.Image:
    return Image.fromarray((picture.clamp(0, 1).cpu().numpy() * 255).round().astype(np.uint8))
