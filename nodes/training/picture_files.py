"""Pictures and captions in ComfyUI's input folder: finding them, and never leaving it."""
from __future__ import annotations

import os
import re
from pathlib import Path, PureWindowsPath

import folder_paths

# What Pillow cannot open is listed too: a picture that is refused by name is better than one that is left out silently.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif")
EXAMPLES = Path(__file__).resolve().parents[2] / "workflows" / "assets"


def picture_paths(folder: str, names: str) -> list[Path]:
    """Files of the pictures: those in `names`, one a line, in that order, or all of `folder` in natural order.

    folder: inside ComfyUI's input folder; "" with names means the input folder itself, without names no files. A
    folder that is not there is looked for among the example pictures that come with the pack.
    Raises ValueError if something lies outside, is missing, or the folder holds no pictures.
    """
    wanted = [line.strip() for line in names.splitlines() if line.strip()]
    if not folder.strip() and not wanted:
        return []
    root = picture_folder(folder)
    if wanted:
        return [_picture(root, name, folder) for name in wanted]
    found = sorted((path.name for path in root.iterdir() if _is_picture(path)), key=_natural)
    if not found:
        raise ValueError(f"Folder '{folder}' holds no pictures ({', '.join(SUFFIXES)}); drop some on the node or "
                         "choose another folder.")
    return [_picture(root, name, folder) for name in found]


def picture_folder(folder: str) -> Path:
    """The folder of that name in ComfyUI's input folder, else among the pack's examples.

    Raises ValueError if it lies outside or is not there.
    """
    inputs = Path(folder_paths.get_input_directory())
    path = _inside(inputs, folder, f"Folder '{folder}'")
    if os.path.isdir(path):  # of a name that no file can have it says no
        return path
    example = _inside(EXAMPLES, folder, f"Folder '{folder}'")
    if os.path.isdir(example):
        return example
    raise ValueError(f"Folder '{folder}' is not in ComfyUI's input folder; drop pictures on the node or choose a "
                     "folder that is there.")


def folder_choices() -> list[str]:
    """Nothing, the folders in ComfyUI's input folder, and the pack's examples."""
    examples = [path.name for path in EXAMPLES.iterdir() if path.is_dir()] if EXAMPLES.is_dir() else []
    return ["", *sorted({*folder_paths.get_input_subfolders(), *examples})]


def caption_beside(picture: Path) -> str:
    """Text of the .txt file of the same name, on one line; "" if there is none. Raises ValueError if it is no text."""
    path = _caption_file(picture)
    if not path.is_file():
        return ""
    try:
        return " ".join(path.read_text(encoding="utf-8-sig").split())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"Caption file {path.name} cannot be read as UTF-8 text ({error}); save it again as plain "
                         "text or remove it.") from error


def fingerprint(folder: str, names: str) -> str:
    """Changes when one of the pictures or captions does. Raises ValueError as `picture_paths` does."""
    files = [file for path in picture_paths(folder, names) for file in (path, _caption_file(path)) if file.is_file()]
    return "\n".join(f"{file} {file.stat().st_mtime_ns} {file.stat().st_size}" for file in files)


def _picture(root: Path, name: str, folder: str) -> Path:
    path = _inside(root, name, f"Picture '{name}'")
    if not path.is_file():
        raise ValueError(f"Picture '{name}' is not in folder '{folder}'; drop it on the node again or remove it from "
                         "the node.")
    return path


def _inside(root: Path, name: str, what: str) -> Path:
    """`name` joined to `root`, proven to stay in it, also through links. Raises ValueError if it does not."""
    parts = PureWindowsPath(name.strip())
    real_root, path = os.path.realpath(root), os.path.join(root, name.strip())
    if (parts.drive or parts.root or ".." in parts.parts or "\0" in name
            or not Path(os.path.realpath(path)).is_relative_to(real_root)):
        raise ValueError(f"{what} lies outside of ComfyUI's input folder; give a name inside it, such as my-dog, "
                         "without '..' and without a leading slash or drive.")
    return Path(path)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _caption_file(picture: Path) -> Path:
    return picture.with_suffix(".txt")


def _natural(name: str) -> list:
    """Sorts "2.jpg" before "10.jpg"."""
    return [(int(piece), "") if piece.isdecimal() else (-1, piece.lower()) for piece in re.split(r"(\d+)", name)]
