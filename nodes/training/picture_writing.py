"""Captions and masks that a person makes in the page, saved beside the pictures; the pictures stay as they are."""
from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
from PIL import Image

from ..files import write_file, write_text
from ..foreign.text import shown_name
from ..picture_names import mask_name
from .captions import LARGEST_FILE
from .picture_files import EXAMPLES, FolderContents, folder_contents, inside, line_of, picture_folder
from .picture_reading import mask_of, read_small

LARGEST_PAINTING = 1024  # pixels on the shorter side; finer masks are no use to a latent of 256
PAINTINGS = "personalize"  # folder in ComfyUI's temp folder


def write_caption(folder: str, name: str, text: str) -> None:
    """Into the caption file that the picture has, or a new .txt beside it.

    Raises ValueError if the picture is none of the input folder or the text too long, NotWritten if the disk refuses.
    """
    path, contents = _own(folder, name)
    text = " ".join(text.split())
    if len(text.encode("utf-8")) > LARGEST_FILE:
        raise ValueError(f"The caption of {shown_name(path.name)} is longer than {LARGEST_FILE // 1024} KB; shorten "
                         "it.")
    file = contents.captions.get(path, path.with_suffix(".txt"))
    if text or file.exists():
        write_text(file, text)


def write_mask(folder: str, name: str, mask: np.ndarray) -> bool:
    """Saves (H, W) in 0…1 as the picture's mask and returns True; an empty one takes the mask away: False.

    Raises as `write_caption`.
    """
    path, contents = _own(folder, name)
    file = contents.masks.get(path, path.with_name(mask_name(path.name)))
    levels = Image.fromarray((np.clip(mask, 0, 1) * 255).round().astype(np.uint8))
    if levels.getextrema()[1] == 0:
        file.unlink(missing_ok=True)
        return False
    write_file(file, _png(levels))
    return True


def start_painting(folder: str, name: str) -> dict[str, str]:
    """A copy of the picture in ComfyUI's temp folder, upright, transparent on the subject as ComfyUI's mask editor has
    it, as {"filename", "subfolder", "type"}. Raises as `write_caption`.
    """
    path, contents = _own(folder, name)
    image, _ = read_small(path, LARGEST_PAINTING)
    mask = mask_of(image, contents.masks.get(path))
    image = image.convert("RGB")
    image.putalpha(Image.fromarray(((1 - mask) * 255).round().astype(np.uint8)) if mask is not None else 255)
    copy = Path(folder_paths.get_temp_directory()) / PAINTINGS / f"{path.stem[:40]}-{secrets.token_hex(4)}.png"
    write_file(copy, _png(image))
    return {"filename": copy.name, "subfolder": PAINTINGS, "type": "temp"}


def take_painting(folder: str, name: str, painted: Any) -> bool:
    """What the mask editor saved, as {"filename", "subfolder", "type"}, becomes the picture's mask: what was painted is
    the subject. True, or False if nothing was painted. Raises as `write_caption`.
    """
    if not isinstance(painted, dict) or painted.get("type") != "input":
        raise ValueError("The painted mask is no picture of ComfyUI's input folder; save it in the mask editor again.")
    name_of_file = f"{painted.get('subfolder') or ''}/{painted.get('filename') or ''}".lstrip("/")
    file = inside(Path(folder_paths.get_input_directory()), name_of_file, "The painted mask")
    image, _ = read_small(file, LARGEST_PAINTING)
    if image.mode != "RGBA":
        return write_mask(folder, name, np.zeros((1, 1)))
    return write_mask(folder, name, 1 - np.asarray(image.getchannel("A"), np.float32) / 255)


def _own(folder: str, name: str) -> tuple[Path, FolderContents]:
    """Raises ValueError if the picture is not in ComfyUI's input folder."""
    if not name.strip():
        raise ValueError("No picture is named.")
    contents = folder_contents(folder, line_of(name))
    if picture_folder(folder).is_relative_to(EXAMPLES):
        raise ValueError("The example's pictures stay as they are; drop your own pictures to give them captions and "
                         "masks.")
    return contents.pictures[0], contents


def _png(image: Image.Image) -> Callable[[Path], None]:
    return lambda path: image.save(path, "PNG", compress_level=1)
