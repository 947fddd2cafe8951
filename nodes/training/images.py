"""Pictures of a subject, from files or from wires, checked and made ready for training."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..text.placeholders import holds
from .augment import GREY, Preparation, prepared
from .interfaces import Picture
from .picture_files import caption_beside, picture_paths

SMALLEST = 8
MODES_WITH_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")


@dataclass(frozen=True)
class Source:
    """A picture as it came: pixels (3, H, W) float32 in 0…1, mask (1, H, W) in 0…1 or None."""

    name: str
    pixels: Tensor
    mask: Tensor | None
    caption: str = ""


@dataclass(frozen=True)
class Prepared:
    """Pictures ready for training, and all their variants for looking at; the first are views of the others.

    pixels: (N·V, size, size, 3). masks: (N·V, size, size), ones for a picture without a mask.
    """

    pictures: tuple[Picture, ...]
    pixels: Tensor
    masks: Tensor


def sources_from_files(folder: str, names: str, enough: int) -> list[Source]:
    """The pictures that `picture_paths` finds, each with the caption beside it.

    enough: pixels on the shorter side; a picture of twice as many or more is read smaller, to save memory.
    Raises ValueError naming the first file that is not a good picture.
    """
    return [_read(path, enough) for path in picture_paths(folder, names)]


def sources_from_tensors(images: Sequence[Tensor], masks: Sequence[Tensor], first_number: int = 1) -> list[Source]:
    """One picture for every row of every IMAGE (B, H, W, 3 or 4), in order, and the masks (B, H, W) in the same order.

    Masks are either there for every picture or for none. The fourth channel of an IMAGE is its mask if there are none.
    Raises ValueError if numbers or sizes do not fit or a picture is not good.
    """
    pictures = [picture for batch in images for picture in batch.reshape(-1, *batch.shape[-3:])]
    shapes = [mask for batch in masks for mask in batch.reshape(-1, *batch.shape[-2:])]
    if shapes and len(shapes) != len(pictures):
        raise ValueError(f"There are {len(shapes)} masks for {len(pictures)} pictures at the input images; connect one "
                         "mask for each picture, in the same order, or none.")
    return [_from_tensor(f"picture {first_number + i}", picture, shapes[i] if shapes else None)
            for i, picture in enumerate(pictures)]


def with_captions(sources: Sequence[Source], texts: Sequence[str], placeholder: str) -> list[Source]:
    """The pictures with their captions, "{}" in them replaced by `placeholder`.

    texts: what the input captions holds. One text is read line by line; several texts are one caption each; an empty
    line leaves its picture without a caption. No text at all keeps the captions beside the files.
    Raises ValueError if their number differs from that of the pictures, or a caption does not hold the placeholder.
    """
    lines = texts[0].rstrip().splitlines() if len(texts) == 1 else list(texts)
    captions = [" ".join(line.split()) for line in lines] or [source.caption for source in sources]
    if len(captions) != len(sources):
        raise ValueError(f"There are {len(captions)} captions for {len(sources)} pictures; write one line for each "
                         "picture, in the order shown, or leave captions empty.")
    return [Source(source.name, source.pixels, source.mask, _filled(caption, placeholder, source.name))
            for source, caption in zip(sources, captions, strict=True)]


def prepare(sources: Sequence[Source], how: Preparation, progress: Callable[[], None] = lambda: None) -> Prepared:
    """Pictures of one size, ready for training; `progress` is called after each.

    Raises ValueError if a centre crop leaves nothing of a picture's subject.
    """
    stacks = []
    for index, source in enumerate(sources):
        stacks.append(_prepared(source, how, index))
        progress()
    whole = torch.cat(stacks)
    pixels, masks = whole[..., :3], whole[..., 3]
    per_picture = len(stacks[0])
    pictures = tuple(Picture(rows, shapes if source.mask is not None else None, source.caption, source.name)
                     for source, rows, shapes in zip(sources, pixels.split(per_picture), masks.split(per_picture)))
    return Prepared(pictures, pixels, masks)


def _prepared(source: Source, how: Preparation, index: int) -> Tensor:
    """Variants (V, size, size, 4), the mask last; ones where the picture has none."""
    if source.mask is None:
        variants = prepared(source.pixels, how, index)
        variants = torch.cat([variants, torch.ones_like(variants[:, :1])], dim=1)
    else:
        variants = prepared(torch.cat([source.pixels, source.mask]), how, index)
    if not all(variant[3].any() for variant in variants):
        raise ValueError(f"Cropping {source.name} to its centre leaves nothing of the subject; set fit to pad, or cut "
                         "the picture around the subject.")
    return variants.movedim(1, -1)


def _read(path: Path, enough: int) -> Source:
    try:
        with Image.open(path) as image:
            channels = _channels(ImageOps.exif_transpose(image), enough)
    except Exception as error:  # Pillow raises many kinds on a broken file
        raise ValueError(f"{path.name} cannot be read as a picture ({error}); save it again as JPEG or PNG, or remove "
                         "it, then run again.") from error
    return _checked(Source(path.name, *_flattened(channels), caption_beside(path)))


def _channels(image: Image.Image, enough: int) -> Tensor:
    """(3 or 4, H, W) float32 in 0…1."""
    if image.mode.startswith("I"):
        grey = torch.from_numpy(np.asarray(image).astype(np.float32) / 65535)
        return grey.clamp(0, 1).expand(3, -1, -1)
    alpha = image.mode in MODES_WITH_ALPHA or "transparency" in image.info
    image = image.convert("RGBA" if alpha else "RGB").reduce(max(1, min(image.size) // enough))
    return torch.from_numpy(np.array(image)).movedim(-1, 0).float() / 255


def _flattened(channels: Tensor) -> tuple[Tensor, Tensor | None]:
    """Pixels, grey where transparent, and the opaque part as mask, or None where nothing is transparent."""
    pixels, alpha = channels[:3], channels[3:]
    if not len(alpha) or alpha.min() == 1:
        return pixels, None
    return pixels * alpha + GREY * (1 - alpha), alpha


def _from_tensor(name: str, image: Tensor, mask: Tensor | None) -> Source:
    if image.shape[-1] not in (3, 4):
        raise ValueError(f"{name} has {image.shape[-1]} channels; connect an IMAGE with 3 (or 4 with transparency).")
    if not torch.isfinite(image).all():
        raise ValueError(f"{name} holds values that are not numbers; look at the node that made it.")
    pixels, alpha = _flattened(_plain(image).movedim(-1, 0))
    return _checked(Source(name, pixels, alpha if mask is None else _plain(mask)[None]))


def _plain(values: Tensor) -> Tensor:
    return values.detach().to("cpu", torch.float32).clamp(0, 1)


def _checked(source: Source) -> Source:
    _, height, width = source.pixels.shape
    if min(height, width) < SMALLEST:
        raise ValueError(f"{source.name} is {width}×{height} pixels; training needs at least {SMALLEST} on each side.")
    if source.mask is None:
        return source
    if source.mask.shape[1:] != source.pixels.shape[1:]:
        raise ValueError(f"The mask of {source.name} is {source.mask.shape[2]}×{source.mask.shape[1]} but the picture "
                         f"is {width}×{height}; connect the mask made for it (Load Image gives an empty 64×64 mask if "
                         "the file has no transparency).")
    if not source.mask.any():
        raise ValueError(f"The mask of {source.name} is empty; paint the subject white, or connect no masks.")
    return source


def _filled(caption: str, placeholder: str, name: str) -> str:
    filled = caption.replace("{}", placeholder)
    if filled and not holds(filled, placeholder):
        raise ValueError(f"The caption of {name}, '{caption}', does not name the subject; write {placeholder} or {{}} "
                         "where the subject is, or remove the caption.")
    return filled
