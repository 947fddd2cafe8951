"""What may spoil the pictures of a subject, said before anything is trained: findings with a remedy each."""
from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..files import version_of
from ..foreign.text import shown_name
from ..inputs import SIZE_STEP
from .augment import Fit
from .images import Loaded
from .picture_files import FolderContents, name_in, some_of
from .picture_look import Look, background_distance, likeness, look_at
from .picture_reading import as_image, mask_of, read_small

FEW, MANY = 3, 30  # pictures
BLURRED = 0.45  # of 1, see `sharpness`
SAME_PICTURE = 0.97  # of 1, see `likeness`
SAME_BACKGROUND = 5.5  # see `background_distance`
LEAST_GROUP = 3  # pictures before one background, and at least half of all
CUT_PICTURE, CUT_SUBJECT = 0.4, 0.05  # of the area
ALL_VIEWS = 60  # pictures; more of them are compared whole with crops, no longer crops with crops
SMALLEST_SIZE = 64  # of Subject
KEPT = 1000  # looks
NOTES = ("unmasked",)  # told when asked, nothing to remedy

SENTENCES: Mapping[str, str] = {
    "none": "There are no pictures yet; drop 4 or 5 of your subject.",
    "few": "{count} of 4 or 5 pictures: what they have in common besides the subject is learned too; add some from "
           "other places and sides.",
    "many": "{count} pictures are many for one subject, each is seen seldom; keep the 5 to 20 best, or train more "
            "steps.",
    "unreadable": "{sentence}",
    "small": "{name} has {width}×{height} pixels and is enlarged to {size}, which blurs it; use a larger one, or "
             "set size to {fitting}.",
    "blurred": "{name} is blurred, and the blur is learned; use a sharper picture.",
    "alike": "{names} show nearly the same picture, which then counts {count} times; keep the best of them.",
    "background": "{count} of {of} pictures have the same background ({names}), which is learned with the subject; "
                  "replace some by pictures from other places, or give masks.",
    "cut": "The crop to a square keeps {kept} % of {name}; if the subject is cut, set fit to pad, or cut the picture "
           "around the subject.",
    "cut_subject": "The crop to a square cuts {lost} % of the subject off {name}; set fit to pad, or cut the picture "
                   "around the subject.",
    "several": "The mask of {name} has {count} separate parts; if they are several things, mask the subject alone.",
    "unmasked": "Whether a picture shows more than one subject cannot be told of those without a mask ({count}).",
}


@dataclass(frozen=True)
class Finding:
    """code: a key of SENTENCES. pictures: names of those it is about, none for the whole set.

    values: what is filled into the sentence.
    """

    code: str
    values: Mapping[str, Any] = field(default_factory=dict)
    pictures: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """Cause and remedy."""
        return SENTENCES[self.code].format(**self.values)


def looks_of(contents: FolderContents, root: Path, size: int) -> dict[str, Look | str]:
    """Name of each picture in `root` → what was measured of it, or why it cannot be read. A file that has not changed
    since is not read again.

    size: side of the squares to train on, in pixels.
    """
    found: dict[str, Look | str] = {}
    for path in contents.pictures:
        name, mask = name_in(root, path), contents.masks.get(path)
        try:
            found[name] = _look(path, mask, size, version_of(path), version_of(mask))
        except (ValueError, OSError) as error:
            found[name] = str(error)
    return found


def findings(looks: Mapping[str, Look | str], size: int, fit: Fit, drawn: bool = False) -> list[Finding]:
    """Of a whole set first, then of single pictures, in their order.

    drawn: whether crops lie at random places, so that a subject is not cut in all of them.
    """
    good = {name: look for name, look in looks.items() if isinstance(look, Look)}
    each = [found for name, look in looks.items() for found in _of_one(name, look, size, fit, drawn)]
    return [*_of_count(len(looks)), *_same_background(good), *_alike(good), *_unmasked(good), *each]


def looks_of_loaded(pictures: Iterable[tuple[str, Loaded]], size: int) -> dict[str, Look | str]:
    """Name → what was measured of a picture that is in memory, for those that come by a wire."""
    found: dict[str, Look | str] = {}
    for name, loaded in pictures:
        image = as_image(loaded.pixels)
        mask = None if loaded.mask is None else loaded.mask[0].numpy()
        found[name] = look_at(_shrunk(image, size), image.width, image.height, mask)
    return found


@functools.lru_cache(maxsize=KEPT)
def _look(path: Path, mask_path: Path | None, size: int, *versions: str) -> Look:
    small, (width, height) = read_small(path, size)
    mask = mask_of(small, mask_path)
    return look_at(_on_grey(_shrunk(small, size)), width, height, mask)


def _shrunk(image: Image.Image, size: int) -> Image.Image:
    factor = size / min(image.size)
    if factor >= 1:
        return image
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BILINEAR)


def _on_grey(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return image
    grey = Image.new("RGBA", image.size, (128, 128, 128, 255))
    return Image.alpha_composite(grey, image).convert("RGB")


def _of_count(count: int) -> list[Finding]:
    if not count:
        return [Finding("none")]
    if count < FEW:
        return [Finding("few", {"count": count})]
    return [Finding("many", {"count": count})] if count > MANY else []


def _of_one(name: str, look: Look | str, size: int, fit: Fit, drawn: bool) -> list[Finding]:
    shown = shown_name(name)
    if isinstance(look, str):
        return [Finding("unreadable", {"sentence": look}, (name,))]
    found = []
    seen = max(look.width, look.height) if fit == "pad" else min(look.width, look.height)
    if seen < size:
        found.append(Finding("small", {"name": shown, "width": look.width, "height": look.height, "size": size,
                                       "fitting": max(SMALLEST_SIZE, seen // SIZE_STEP * SIZE_STEP)}, (name,)))
    elif look.sharpness is not None and look.sharpness < BLURRED:
        found.append(Finding("blurred", {"name": shown}, (name,)))
    kept = min(look.width, look.height) / max(look.width, look.height)
    if fit == "crop" and look.mask and not drawn and look.mask.outside > CUT_SUBJECT:
        found.append(Finding("cut_subject", {"name": shown, "lost": round(100 * look.mask.outside)}, (name,)))
    elif fit == "crop" and not look.mask and kept < 1 - CUT_PICTURE:
        found.append(Finding("cut", {"name": shown, "kept": round(100 * kept)}, (name,)))
    if look.mask and look.mask.parts > 1:
        found.append(Finding("several", {"name": shown, "count": look.mask.parts}, (name,)))
    return found


def _same_background(looks: Mapping[str, Look]) -> list[Finding]:
    names = list(looks)
    if len(names) < LEAST_GROUP:
        return []
    apart = np.zeros((len(names), len(names)))
    for row in range(len(names)):
        for column in range(row):
            apart[row, column] = apart[column, row] = background_distance(looks[names[row]].frame,
                                                                          looks[names[column]].frame)
    alike = apart < SAME_BACKGROUND
    group = tuple(name for name, same in zip(names, alike[alike.sum(1).argmax()]) if same)
    if len(group) < LEAST_GROUP or 2 * len(group) < len(names):
        return []
    return [Finding("background", {"count": len(group), "of": len(names), "names": _named(group)}, group)]


def _alike(looks: Mapping[str, Look]) -> list[Finding]:
    """Groups of pictures, each with at least one other of its group nearly the same."""
    names = list(looks)
    views = [looks[name].views if len(names) <= ALL_VIEWS else looks[name].views[:1] for name in names]
    group = list(range(len(names)))
    for row in range(len(names)):
        for column in range(row):
            if group[row] != group[column] and likeness(views[row], looks[names[column]].views) > SAME_PICTURE:
                group = [group[column] if number == group[row] else number for number in group]
    together = [tuple(name for name, number in zip(names, group) if number == one) for one in dict.fromkeys(group)]
    return [Finding("alike", {"names": _named(some), "count": len(some)}, some) for some in together if len(some) > 1]


def _unmasked(looks: Mapping[str, Look]) -> list[Finding]:
    without = sum(look.mask is None for look in looks.values())
    return [Finding("unmasked", {"count": without})] if without else []


def _named(names: Sequence[str]) -> str:
    return some_of([shown_name(name) for name in names])
