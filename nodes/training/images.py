"""Pictures of a subject, from files or from wires, checked and made ready for training."""
from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..foreign.text import shown_name
from .augment import CHANNELS, GREY, Preparation, not_longer, prepared
from .captions import captions_for, read_caption
from .fingerprint import fingerprint
from .picture_bounds import at_once, check_sides, count_shown
from .picture_files import FolderContents, some_of
from .picture_reading import read_mask, read_picture
from .zoom import Framing


@dataclass(frozen=True)
class Loaded:
    """A picture as it came: pixels (3, H, W) float32 in 0…1, mask (1, H, W) in 0…1 or None.

    remark: what of its file is not used, or "".
    """

    pixels: Tensor
    mask: Tensor | None
    remark: str = ""


@dataclass(frozen=True)
class Source:
    """A picture that is read when it is asked for, so that only one at a time is in memory at its full size.

    load: reads it. Raises ValueError naming it if it is not good.
    """

    name: str
    load: Callable[[], Loaded]
    caption: str = ""


@dataclass(frozen=True)
class SourcePicture:
    """A `Picture` that is read again, and its variants made, when they are asked for: those of all pictures together
    may be more than memory holds.

    index: as for `prepared`. content: digest of what was read first. masked: whether there was a mask.
    """

    source: Source
    how: Preparation
    index: int
    content: str
    masked: bool
    caption: str
    NOT_IN_KEY = ("source",)

    @property
    def name(self) -> str:
        """Of the source."""
        return self.source.name

    @property
    def count(self) -> int:
        """As many as `how` says."""
        return self.how.versions

    @property
    def size(self) -> tuple[int, int]:
        """Of the squares."""
        return self.how.size, self.how.size

    def framing(self, variant: int) -> Framing:
        """As `how` draws it."""
        return self.how.framings(self.index)[variant]

    def photograph(self, longest_side: int) -> Tensor:
        """Reads again. Raises ValueError if the picture is not good any more."""
        return not_longer(self.source.load().pixels, longest_side).movedim(0, -1)

    def made(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Reads and prepares. Raises ValueError if the picture is another one than before, or as `prepare` does."""
        loaded = self.source.load()
        if _content(loaded) != self.content:
            raise ValueError(f"{self.name} has changed since the Subject node read it; run the workflow again.")
        variants, group = prepared(_whole(loaded), self.how, self.index), at_once(self.how)
        for first in range(0, self.count, group):
            together = _next(variants, min(group, self.count - first), self.name)
            yield together[..., :3], together[..., 3] if self.masked else None


@dataclass(frozen=True)
class Prepared:
    """Pictures ready for training, and some of their variants for looking at.

    pixels: (M, size, size, 3), as many variants of every picture as SHOWN bytes hold, or one of the first pictures.
    masks: (M, size, size), ones for a picture without a mask. remarks: what of the files is not used.
    """

    pictures: tuple[SourcePicture, ...]
    pixels: Tensor
    masks: Tensor
    remarks: tuple[str, ...]


def sources_of(contents: FolderContents, enough: int) -> list[Source]:
    """The pictures of a folder, each with the caption and the mask beside it.

    enough: pixels on the shorter side; a picture of twice as many or more is read smaller, to save memory.
    Raises ValueError naming the first caption file that cannot be read.
    """
    return [Source(shown_name(path.name), _reader(path, contents.masks.get(path), enough),
                   read_caption(contents.captions.get(path))) for path in contents.pictures]


def sources_of_files(paths: Sequence[Path], captions: Sequence[str], enough: int) -> list[Source]:
    """Pictures of files, each with its caption. enough: as for `sources_of`."""
    return [Source(shown_name(path.name), _reader(path, None, enough), caption)
            for path, caption in zip(paths, captions, strict=True)]


def sources_from_tensors(images: Sequence[Tensor], masks: Sequence[Tensor], first_number: int = 1) -> list[Source]:
    """One picture for every row of every IMAGE (B, H, W, 3 or 4), in order, and the masks (B, H, W) in the same order.

    Masks are either there for every picture or for none. The fourth channel of an IMAGE is its mask if there are none.
    Raises ValueError if the numbers do not fit.
    """
    pictures = [picture for batch in images for picture in batch.reshape(-1, *batch.shape[-3:])]
    shapes = [mask for batch in masks for mask in batch.reshape(-1, *batch.shape[-2:])]
    if shapes and len(shapes) != len(pictures):
        raise ValueError(f"There are {len(shapes)} masks for {len(pictures)} pictures at the input images; connect one "
                         "mask for each picture, in the same order, or none.")
    names = [f"picture {first_number + i}" for i in range(len(pictures))]
    return [Source(name, _converter(name, picture, shapes[i] if shapes else None))
            for i, (name, picture) in enumerate(zip(names, pictures))]


def with_captions(sources: Sequence[Source], texts: Sequence[str], placeholder: str) -> list[Source]:
    """The pictures with their captions, as `captions_for` makes them of `texts`. Raises ValueError as it does."""
    captions = captions_for([source.name for source in sources], [source.caption for source in sources], texts,
                            placeholder)
    return [replace(source, caption=caption) for source, caption in zip(sources, captions, strict=True)]


def prepare(sources: Sequence[Source], how: Preparation, progress: Callable[[], None] = lambda: None) -> Prepared:
    """Pictures of one size, ready for training; `progress` is called after each.

    Raises ValueError naming every picture that is not good, also one of whose subject a centre crop leaves nothing.
    """
    each, number = count_shown(len(sources), how)
    looks = torch.ones(number, each, how.size, how.size, CHANNELS)
    pictures, remarks, refused = [], [], {}
    for index, source in enumerate(sources):
        try:
            loaded = source.load()
            if not refused:
                pictures.append(_picture(source, loaded, how, index))
                made = _next(prepared(_whole(loaded), how, index), each if index < number else 1, source.name)
                if index < number:
                    looks[index, ..., :made.shape[-1]] = made
            remarks.append(loaded.remark)
        except ValueError as error:
            refused[source.name] = str(error)
        progress()
    if refused:
        raise ValueError(_together(refused))
    rows = looks.flatten(0, 1)
    return Prepared(tuple(pictures), rows[..., :3], rows[..., 3], tuple(filter(None, remarks)))


def _picture(source: Source, loaded: Loaded, how: Preparation, index: int) -> SourcePicture:
    return SourcePicture(source, how.counting, index if how.is_drawn else 0, _content(loaded), loaded.mask is not None,
                         source.caption)


def _content(loaded: Loaded) -> str:
    return fingerprint(loaded.pixels, loaded.mask)


def _whole(loaded: Loaded) -> Tensor:
    """(3, H, W), or 4 with the mask last where the picture has one."""
    return loaded.pixels if loaded.mask is None else torch.cat([loaded.pixels, loaded.mask])


def _next(variants: Iterator[Tensor], count: int, name: str) -> Tensor:
    """The next `count` of the variants (C, size, size), as (count, size, size, C)."""
    together = torch.stack([variant.movedim(0, -1) for variant in itertools.islice(variants, count)])
    if together.shape[-1] == CHANNELS and not together[..., 3].flatten(1).any(1).all():
        raise ValueError(f"Cropping {name} to its centre leaves nothing of the subject; set fit to pad, or cut the "
                         "picture around the subject.")
    return together


def _together(refused: dict[str, str]) -> str:
    """One sentence about all pictures that are not good: the fault of the first, and the names of the others."""
    first, *others = refused
    if not others:
        return refused[first]
    return f"{refused[first].rstrip('.')}; {len(others)} more cannot be used either: {some_of(others)}."


def _reader(path: Path, mask_file: Path | None, enough: int) -> Callable[[], Loaded]:
    def load() -> Loaded:
        read = read_picture(path, enough)
        pixels, mask = _flattened(read.channels)
        if mask_file is not None:
            mask = read_mask(mask_file, *pixels.shape[1:])
        return _checked(shown_name(path.name), Loaded(pixels, mask, read.remark))

    return load


def _flattened(channels: Tensor) -> tuple[Tensor, Tensor | None]:
    """Pixels, grey where transparent, and the opaque part as mask, or None where nothing is transparent."""
    pixels, alpha = channels[:3], channels[3:]
    if not len(alpha) or alpha.min() == 1:
        return pixels, None
    return pixels * alpha + GREY * (1 - alpha), alpha


def _converter(name: str, image: Tensor, mask: Tensor | None) -> Callable[[], Loaded]:
    def load() -> Loaded:
        if image.shape[-1] not in (3, 4):
            raise ValueError(f"{name} has {image.shape[-1]} channels; connect an IMAGE with 3 (or 4 with "
                             "transparency).")
        check_sides(name, image.shape[1], image.shape[0])
        if not torch.isfinite(image).all():
            raise ValueError(f"{name} holds values that are not numbers; look at the node that made it.")
        if mask is not None and not torch.isfinite(mask).all():
            raise ValueError(f"The mask of {name} holds values that are not numbers; look at the node that made it.")
        pixels, alpha = _flattened(_plain(image).movedim(-1, 0))
        return _checked(name, Loaded(pixels, alpha if mask is None else _plain(mask)[None]))

    return load


def _plain(values: Tensor) -> Tensor:
    return values.detach().to("cpu", torch.float32).clamp(0, 1)


def _checked(name: str, loaded: Loaded) -> Loaded:
    _, height, width = loaded.pixels.shape
    if loaded.mask is None:
        return loaded
    if loaded.mask.shape[1:] != loaded.pixels.shape[1:]:
        raise ValueError(f"The mask of {name} is {loaded.mask.shape[2]}×{loaded.mask.shape[1]} but the picture "
                         f"is {width}×{height}; connect the mask made for it (Load Image gives an empty 64×64 mask if "
                         "the file has no transparency).")
    if not loaded.mask.any():
        raise ValueError(f"The mask of {name} is empty; paint the subject white, or connect no masks.")
    return loaded
