"""Pictures, captions and masks in ComfyUI's input folder: finding them, and never leaving it."""
from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

import folder_paths

from ..files import version_of
from ..foreign.text import shown_name
from ..picture_names import SUFFIXES, caption_names, is_caption, is_mask, is_picture, mask_name
from ..text.embedding_versions import embedding_versions

EXAMPLES = Path(__file__).resolve().parents[2] / "workflows" / "assets"
SHOWN_NAMES = 5
_CLUTTER = ("thumbs.db", "desktop.ini")


@dataclass(frozen=True)
class FolderContents:
    """What a folder holds.

    pictures: in natural order. captions: picture → its caption file. masks: picture → the file of its mask.
    left_out: name of a file that is not used → why.
    """

    pictures: tuple[Path, ...]
    captions: Mapping[Path, Path] = field(default_factory=dict)
    masks: Mapping[Path, Path] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    def left_out_sentence(self) -> str:
        """Names what is left out, or "" if nothing is."""
        if not self.left_out:
            return ""
        named = [f"{shown_name(name)} ({why})" for name, why in self.left_out.items()]
        return f"Not used from the folder: {some_of(named)}."


def folder_contents(folder: str, names: str = "") -> FolderContents:
    """Pictures, their captions and masks, and what of the whole folder is left out. The pictures are those in `names`,
    one a line, in that order, or all of `folder` in natural order.

    folder: inside ComfyUI's input folder; "" with names means the input folder itself, without names no files. A
    folder that is not there is looked for among the example pictures that come with the pack.
    Raises ValueError if something lies outside, is missing, or the folder holds no pictures.
    """
    wanted = [line for line in re.split(r"[\r\n]+", names) if line.strip()]
    if not folder.strip() and not wanted:
        return FolderContents(())
    root = picture_folder(folder)
    if wanted:
        pictures = tuple(_picture(root, name, folder) for name in wanted)
        return FolderContents(pictures, *_beside(pictures))
    contents = _all_of(root)
    if not contents.pictures:
        raise ValueError(_no_pictures(root, folder, contents))
    return contents


def picture_folder(folder: str) -> Path:
    """The folder of that name in ComfyUI's input folder, else among the pack's examples.

    Raises ValueError if it lies outside or is not there.
    """
    what = f"Folder '{shown_name(folder)}'"
    for root in (Path(folder_paths.get_input_directory()), EXAMPLES):
        for name in dict.fromkeys((folder, folder.strip())):
            path = inside(root, name, what)
            if os.path.isdir(path):
                return path
    raise ValueError(f"{what} is not in ComfyUI's input folder; drop pictures on the node or choose a folder that is "
                     "there.")


def line_of(name: str) -> str:
    """The line that names a picture, with line breaks in its name written out."""
    return name.replace("\n", "\\n").replace("\r", "\\r")


def name_in(root: Path, picture: Path) -> str:
    """Of a picture of `folder_contents`, as `names` and the page call it."""
    return os.path.relpath(picture, root).replace(os.sep, "/")


def folder_choices() -> list[str]:
    """Nothing, the folders in ComfyUI's input folder, and the pack's examples."""
    examples = [path.name for path in EXAMPLES.iterdir() if path.is_dir()] if EXAMPLES.is_dir() else []
    return ["", *sorted({*folder_paths.get_input_subfolders(), *examples})]


def folder_fingerprint(folder: str, names: str) -> str:
    """Changes when one of the pictures, captions or masks does, or an embedding that a caption names.

    Raises ValueError as `folder_contents` does.
    """
    contents = folder_contents(folder, names)
    captions = [Path(file) for file in contents.captions.values()]
    files = (*contents.pictures, *captions, *contents.masks.values())
    versions = [version_of(Path(file)) for file in files]
    return "\n".join([*versions, *map(embedding_versions, captions)])


def some_of(names: Sequence[str]) -> str:
    """The names with commas between, after the first few only how many more there are."""
    more = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def _all_of(root: Path) -> FolderContents:
    pictures, texts, masks, left_out = [], [], [], {}
    for entry in _entries(root):
        name = entry.name
        if name.lower() in _CLUTTER or _is(entry.is_dir):
            continue
        if is_caption(name):
            texts.append(name)
        elif is_mask(name) and not name.startswith("."):
            masks.append(name)
        elif not is_picture(name):
            if not name.startswith("."):
                left_out[name] = "no picture"
        elif name.startswith("."):
            left_out[name] = "hidden, as its name begins with a dot"
        elif not _is(entry.is_file):
            left_out[name] = "no file, or a link to one that is gone"
        else:
            pictures.append(_linkedinside(root, entry))
    found, covered = _matched(pictures, texts, caption_names), _matched(pictures, masks, _mask_names)
    used = {path.name for path in found.values()}
    stems = {name for picture in pictures for name in caption_names(picture.name)}
    left_out |= {name: "a second caption" if name.lower() in stems else "a caption without a picture"
                 for name in sorted(texts, key=_natural) if name not in used}
    used = {path.name for path in covered.values()}
    left_out |= {name: "a mask without a picture" for name in masks if name not in used}
    return FolderContents(tuple(pictures), found, covered, left_out)


def _is(question: Callable[[], bool]) -> bool:
    """The answer of a DirEntry, False where there is none, as for a link that leads to itself."""
    try:
        return question()
    except OSError:
        return False


def _entries(root: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(root) as entries:
            return sorted(entries, key=lambda entry: _natural(entry.name))
    except OSError as error:
        raise ValueError(f"Folder '{shown_name(root.name)}' cannot be opened ({error.strerror}); let ComfyUI read it, "
                         "or choose another.") from error


def _beside(pictures: Sequence[Path]) -> tuple[dict[Path, Path], dict[Path, Path]]:
    """Captions and masks of these pictures."""
    captions: dict[Path, Path] = {}
    masks: dict[Path, Path] = {}
    for folder in dict.fromkeys(picture.parent for picture in pictures):
        here = [picture for picture in pictures if picture.parent == folder]
        names = [entry.name for entry in _entries(folder) if _is(entry.is_file)]
        captions |= _matched(here, list(filter(is_caption, names)), caption_names)
        masks |= _matched(here, list(filter(is_mask, names)), _mask_names)
    return captions, masks


def _mask_names(picture: str) -> list[str]:
    return [mask_name(picture).lower()]


def _matched(pictures: Sequence[Path], files: Sequence[str],
             names_of: Callable[[str], list[str]]) -> dict[Path, Path]:
    """Picture → the first of the files that `names_of` it calls for, whatever the capitals of the names."""
    by_name: dict[str, str] = {}
    for file in files:
        by_name.setdefault(file.lower(), file)
    found = {}
    for picture in pictures:
        names = [by_name[name] for name in names_of(picture.name) if name in by_name]
        if names:
            found[picture] = picture.with_name(names[0])
    return found


def _no_pictures(root: Path, folder: str, contents: FolderContents) -> str:
    where = shown_name(folder)
    with_pictures = [entry.name for entry in _entries(root)
                     if _is(entry.is_dir) and any(_picture_names(Path(entry.path)))]
    if with_pictures:
        below = [shown_name(name) for name in with_pictures]
        return (f"Folder '{where}' holds no pictures itself, but its folders do: {some_of(below)}; choose one of them, "
                f"such as {where}/{below[0]}.")
    left_out = contents.left_out_sentence()
    return (f"Folder '{where}' holds no pictures ({', '.join(SUFFIXES)}); drop some on the node or choose another "
            f"folder.{' ' * bool(left_out)}{left_out}")


def _picture_names(folder: Path) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in entries if is_picture(entry.name))
    except OSError:
        return


def _picture(root: Path, name: str, folder: str) -> Path:
    """The picture that a line names: as it stands, without spaces around it, or with \\n for a line break."""
    unescaped = name.replace("\\n", "\n").replace("\\r", "\r")
    what = f"Picture '{shown_name(name)}'"
    for candidate in dict.fromkeys((name, name.strip(), unescaped)):
        path = inside(root, candidate, what)
        if os.path.isfile(path):
            return path
    raise ValueError(f"{what} is not in folder '{shown_name(folder)}'; drop it on the node again or remove it from the "
                     "node.")


def _linkedinside(root: Path, entry: os.DirEntry) -> Path:
    """Raises ValueError for a link that leads out of the folder."""
    if entry.is_symlink() and not _leads_into(root, entry.path):
        raise ValueError(
            f"Picture '{shown_name(entry.name)}' is a link and lies outside of ComfyUI's input folder; put "
            "the picture itself into the folder, or remove the link."
        )
    return Path(entry.path)


def inside(root: Path, name: str, what: str) -> Path:
    """`name` joined to `root`, proven to stay in it, also through links. Raises ValueError if it does not."""
    path = os.path.join(root, name)
    try:
        there = _is_plain(name) and os.path.lexists(path)
        inside = (there or not _climbs(name)) and _leads_into(root, path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{what} is no name that a file can have; choose one that is in ComfyUI's input folder."
        ) from error
    if not inside:
        raise ValueError(f"{what} lies outside of ComfyUI's input folder; give a name inside it, such as my-dog, "
                         "without '..' and without a leading slash or drive.")
    return Path(path)


def _leads_into(root: Path, path: str) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def _climbs(name: str) -> bool:
    """Whether a name leads out of its folder on any system."""
    parts = PureWindowsPath(name.strip())
    return bool(parts.drive or parts.root or ".." in parts.parts)


def _is_plain(name: str) -> bool:
    """Whether colons and backslashes are ordinary letters of this name, as on Linux and macOS."""
    return os.sep == "/" and not name.startswith("/") and ".." not in name.split("/")


def _natural(name: str) -> list:
    """Sorts "2.jpg" before "10.jpg"."""
    return [(int(piece), "") if piece.isdecimal() else (-1, piece.lower()) for piece in re.split(r"(\d+)", name)]
