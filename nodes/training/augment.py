"""Every picture as one or several squares of one size, its mask with it.

A picture is a tensor (C, H, W) in 0…1: red, green, blue, and the mask as fourth channel where there is one. Whatever
happens to a picture happens to all its channels at once, so that a mask cannot lose its picture.
"""
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .seeds import generator
from .zoom import WHOLE, Framing, Zoom, zoomed, zooms

Fit = Literal["crop", "pad", "squash"]
Augmentation = Literal["none", "flip", "as released", "zoom"]

GREY = 0.5
CHANNELS = 4
MOST_TIMES_ENOUGH = 4
ROTATION_PROBABILITY, ROTATION_DEGREES, FLIP_PROBABILITY = 0.75, 45.0, 0.25


@dataclass(frozen=True)
class Preparation:
    """How pictures are made ready for training.

    size: side of the squares in pixels.
    fit: what happens to a picture that is not square: "crop" to its shorter side, "pad" with grey, or "squash".
    augmentation: "none"; "flip" adds the mirrored picture; "as released" draws `variants` versions as CoRe's code does,
        "zoom" as Custom Diffusion's.
    """

    size: int
    fit: Fit
    augmentation: Augmentation
    variants: int
    seed: int

    @property
    def counting(self) -> Preparation:
        """The same without what changes no result."""
        return self if self.is_drawn else replace(self, variants=1, seed=0)

    @property
    def is_drawn(self) -> bool:
        """Whether versions are random, of the seed and the picture's number."""
        return self.augmentation in ("as released", "zoom")

    @property
    def enough(self) -> int:
        """Pixels of a shorter side beyond which a larger picture gains nothing."""
        return 2 * self.size

    @property
    def versions(self) -> int:
        """How many of each picture are made."""
        return {"none": 1, "flip": 2}.get(self.augmentation, self.variants)

    def framings(self, index: int) -> tuple[Framing, ...]:
        """Of each version of picture `index`."""
        if self.augmentation != "zoom":
            return (WHOLE,) * self.versions
        return tuple(zoom.framing for zoom in zooms(self.size, self.variants, self.seed, index))


def prepared(picture: Tensor, how: Preparation, index: int) -> Iterator[Tensor]:
    """The variants (C, size, size) of a picture (C, H, W), `how.versions` of them, one after the other.

    index: number of the picture among the subject's; with `how.seed` it decides all that is random.
    """
    if how.augmentation == "as released":
        draws = torch.rand(how.variants, 5, generator=generator(how.seed, "augmentation", index)).tolist()
        picture = not_longer(_shrunk(picture, how.enough), MOST_TIMES_ENOUGH * how.enough)
        yield from (as_released(picture, how.fit, how.size, *draw) for draw in draws)
        return
    if how.augmentation == "zoom":
        picture = not_longer(_shrunk(picture, how.enough), MOST_TIMES_ENOUGH * how.enough)
        yield from (_zoomed(picture, how, zoom) for zoom in zooms(how.size, how.variants, how.seed, index))
        return
    if how.fit == "pad":
        picture = not_longer(picture, MOST_TIMES_ENOUGH * how.enough)
    plain = fitted(picture, how.fit, how.size)
    yield plain
    if how.augmentation == "flip":
        yield plain.flip(-1)


def as_released(picture: Tensor, fit: Fit, size: int, turn: float, angle: float, mirror: float, down: float,
                right: float) -> Tensor:
    """The augmentation of CoRe's released code (github pangy9/CoRe 308f55b), given five draws from 0…1.

    Rotation by -45°…45° with probability 0.75, mirrored with probability 0.25, and a crop at a random place.

    With a mask the crop is drawn from those that keep at least a piece of the subject.
    """
    if turn < ROTATION_PROBABILITY:
        picture = rotated(picture, (2 * angle - 1) * ROTATION_DEGREES)
    if mirror < FLIP_PROBABILITY:
        picture = picture.flip(-1)
    return fitted(picture, fit, size, down, right, keep=_pixel_of_subject(picture))


def _zoomed(picture: Tensor, how: Preparation, zoom: Zoom) -> Tensor:
    square = fitted(picture, how.fit, zoom.scale)
    return zoomed(square, how.size, zoom, _pixel_of_subject(square))


def fitted(picture: Tensor, fit: Fit, size: int, down: float = 0.5, right: float = 0.5,
           keep: tuple[int, int] | None = None) -> Tensor:
    """The picture (C, H, W) as (C, size, size), scaled bilinearly with antialiasing.

    down, right: where a "crop" lies between the top (left) and the bottom (right) edge, 0…1.
    keep: (row, column) that the crop must hold.
    """
    if fit == "crop":
        picture = _cropped(picture, down, right, keep)
    elif fit == "pad":
        picture = _padded(picture)
    return _scaled(picture, size, size)


def rotated(picture: Tensor, degrees: float) -> Tensor:
    """The whole picture turned counter-clockwise about its centre on a canvas that holds all of it, bilinearly.

    The new corners are black, and 0 in the mask.
    """
    _, height, width = picture.shape
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    rows = math.ceil(abs(height * cos) + abs(width * sin) - 1e-6)
    columns = math.ceil(abs(width * cos) + abs(height * sin) - 1e-6)
    y = (torch.arange(rows) - (rows - 1) / 2)[:, None]
    x = (torch.arange(columns) - (columns - 1) / 2)[None, :]
    source = torch.stack([2 * (cos * x - sin * y) / width, 2 * (sin * x + cos * y) / height], dim=-1)
    return F.grid_sample(picture[None], source[None], mode="bilinear", padding_mode="zeros", align_corners=False)[0]


def _cropped(picture: Tensor, down: float, right: float, keep: tuple[int, int] | None) -> Tensor:
    side = min(picture.shape[1:])
    top = _offset(picture.shape[1], side, down, keep and keep[0])
    left = _offset(picture.shape[2], side, right, keep and keep[1])
    return picture[:, top:top + side, left:left + side]


def _offset(length: int, side: int, place: float, keep: int | None) -> int:
    first, last = 0, length - side
    if keep is not None:
        first, last = max(first, keep - side + 1), min(last, keep)
    return min(first + int(place * (last - first + 1)), last)


def _padded(picture: Tensor) -> Tensor:
    channels, height, width = picture.shape
    side = max(height, width)
    canvas = picture.new_full((channels, side, side), GREY)
    canvas[3:] = 0
    top, left = (side - height) // 2, (side - width) // 2
    canvas[:, top:top + height, left:left + width] = picture
    return canvas


def _shrunk(picture: Tensor, shorter_side: int) -> Tensor:
    """A smaller version of a picture larger than needed, so that turning it many times stays quick."""
    return _resized(picture, shorter_side / min(picture.shape[1:]))


def not_longer(picture: Tensor, longer_side: int) -> Tensor:
    """A smaller version of a long picture, as the square canvas that holds it turned or padded grows with its
    length."""
    return _resized(picture, longer_side / max(picture.shape[1:]))


def _resized(picture: Tensor, factor: float) -> Tensor:
    _, height, width = picture.shape
    return picture if factor >= 1 else _scaled(picture, round(height * factor), round(width * factor))


def _scaled(picture: Tensor, height: int, width: int) -> Tensor:
    if picture.shape[1:] == (height, width):
        return picture
    return F.interpolate(picture[None], (height, width), mode="bilinear", antialias=True)[0].clamp(0, 1)


def _pixel_of_subject(picture: Tensor) -> tuple[int, int] | None:
    pixels = torch.nonzero(picture[3:].sum(0))
    if not len(pixels):
        return None
    row, column = pixels[len(pixels) // 2].tolist()
    return row, column
