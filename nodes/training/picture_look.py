"""What can be measured of a picture without a model: sharpness, what it shows, what lies around its subject.

Measured on the 158 photographs of DreamBooth's data set (30 subjects), thresholds chosen on every second subject and
tried on the others (`tests/lab/bench/pictures.py`): sets before one background are found in 6 of 6 and 2 of 2, and 0
of 9 and 1 of 13 others are called so (black bars around three photographs); a blur of 2 of 512 pixels is found in 25
of 30, of 2.5 in 30 of 30, in 0 of 158 as they are; a photograph again, smaller, mirrored, cropped to 0.9 or turned by
3°, in 30 of 30, and one set of drawings on white, 4 poses of one figure, is called the same.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

Array = np.ndarray

TILE = 32  # pixels
STRONGEST = 0.25  # of the tiles, by contrast
LEAST_CONTRAST = 1.5  # of 255, mean step from pixel to pixel
REBLUR = 4  # pixels on either side
BLOCKS, FRAME, BLOCK = 16, 2, 6  # blocks along a side, rows of them in the frame, pixels along a block
WEIGHTS = np.array([0.35, 1, 1, 1.2, 1.2, 1.2], np.float32)  # means of L, a, b and their deviations
SHARE_ALIKE = 60  # percent of the frame that has its like in the other one
THUMBNAIL, FULL = 12, 64  # pixels
CROPS, PLACES = (1.0, 0.93, 0.86, 0.8), 4
SMALLEST_PART = 0.1  # of the largest one
PART_GRID = 64


@dataclass(frozen=True)
class Mask:
    """Of a subject. parts: how many separate pieces of it there are. outside: share that a centre crop cuts off."""

    parts: int
    outside: float


@dataclass(frozen=True)
class Look:
    """width, height: pixels, upright. sharpness: 0…1, or None where nothing has contrast.

    views: (V, D) float32, unit vectors of what the picture and crops of it show. frame: (F, 6) float32, colours and
    textures around the subject.
    """

    width: int
    height: int
    sharpness: float | None
    views: Array
    frame: Array
    mask: Mask | None


def look_at(image: Image.Image, width: int, height: int, mask: Array | None = None) -> Look:
    """Measures a picture.

    image: RGB, at the size that training sees or smaller. width, height: of its file. mask: (H, W) in 0…1, of any size.
    """
    square = np.asarray(image.resize((FULL, FULL), Image.Resampling.BOX), np.float32)
    inside = None if mask is None else _resized(mask, BLOCKS, BLOCKS)
    side = BLOCKS * BLOCK
    colours = lab(np.asarray(image.resize((side, side), Image.Resampling.BOX), np.float32) / 255)
    return Look(width, height, sharpness(np.asarray(image.convert("L"), np.float32), mask), views_of(square),
                frame_of(colours, inside), None if mask is None else Mask(parts_of(mask), cut_off(mask)))


def sharpness(grey: Array, mask: Array | None = None) -> float | None:
    """How much of the steps between neighbouring pixels a blur takes away, 0…1, where the picture has most contrast.

    Blurred pictures lose little by another blur (F. Crete et al., The Blur Effect, 2007). A blurred background beside
    a sharp subject counts for nothing, as the tiles with most contrast decide.

    grey: (H, W), 0…255. mask: only tiles that it touches count. None where no tile has contrast.
    """
    steps = lost = 0
    for axis in (0, 1):
        own, blurred = (np.abs(np.diff(values, axis=axis, prepend=values.take([0], axis)))
                        for values in (grey, _box_blurred(grey, axis)))
        steps = steps + _tiles(own)
        lost = lost + _tiles(np.maximum(0, own - blurred))
    contrast = steps / TILE**2
    if mask is not None:
        contrast = contrast * (_resized(mask, *steps.shape) > 0.5)
    strongest = np.argsort(-contrast, axis=None)[:max(1, int(contrast.size * STRONGEST))]
    strongest = strongest[contrast.flat[strongest] > LEAST_CONTRAST]
    if not len(strongest):
        return None
    return float(np.percentile(lost.flat[strongest] / steps.flat[strongest], 75))


def views_of(square: Array) -> Array:
    """(V, D): the picture (H, W, 3) and crops of it, each as small picture without its mean and of length 1."""
    image = Image.fromarray(square.astype(np.uint8))
    views = []
    for share in CROPS:
        side = share * len(square)
        places = [0] if share == 1 else np.linspace(0, len(square) - side, PLACES)
        for top in places:
            for left in places:
                box = (left, top, left + side, top + side)
                views.append(np.asarray(image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR, box)))
    flat = np.stack(views).astype(np.float32)
    flat = (flat - flat.mean((1, 2), keepdims=True)).reshape(len(flat), -1)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-3)


def mirrored(views: Array) -> Array:
    """The same views seen in a mirror."""
    return views.reshape(-1, THUMBNAIL, THUMBNAIL, 3)[:, :, ::-1].reshape(len(views), -1)


def likeness(one: Array, other: Array) -> float:
    """Of two pictures by their views, also as crops and mirror images of each other: -1…1, 1 for the same."""
    return float(np.max(one @ np.concatenate([other, mirrored(other)]).T))


def frame_of(colours: Array, mask: Array | None = None) -> Array:
    """(F, 6): mean and deviation of L, a, b of each block along the edges, times WEIGHTS; of all outside of the mask.

    colours: (H, W, 3), BLOCKS × BLOCK along each side. mask: (BLOCKS, BLOCKS) or None.
    """
    blocks = colours.reshape(BLOCKS, BLOCK, BLOCKS, BLOCK, 3).transpose(0, 2, 1, 3, 4).reshape(BLOCKS, BLOCKS, -1, 3)
    described = np.concatenate([blocks.mean(2), blocks.std(2)], -1) * WEIGHTS
    row, column = np.mgrid[:BLOCKS, :BLOCKS]
    chosen = (row < FRAME) | (column < FRAME) | (column >= BLOCKS - FRAME)
    if mask is not None and (mask < 0.1).sum() >= BLOCKS:
        chosen = mask < 0.1
    return described[chosen].astype(np.float32)


def background_distance(one: Array, other: Array) -> float:
    """How far most blocks of each frame are from the most similar block of the other one; in units of a, b."""
    apart = np.sqrt(((one[:, None] - other[None])**2).sum(-1))
    return float(max(np.percentile(apart.min(1), SHARE_ALIKE), np.percentile(apart.min(0), SHARE_ALIKE)))


def parts_of(mask: Array) -> int:
    """How many pieces of the mask there are that do not touch, those smaller than a tenth of the largest left out."""
    inside = _resized(mask, PART_GRID, PART_GRID) > 0.5
    number = np.where(inside, np.arange(1, inside.size + 1).reshape(inside.shape), 0)
    while True:
        spread = np.pad(number, 1)
        spread = np.max([spread[1 + down:1 + down + PART_GRID, 1 + right:1 + right + PART_GRID]
                         for down in (-1, 0, 1) for right in (-1, 0, 1)], axis=0) * inside
        if (spread == number).all():
            break
        number = spread
    _, sizes = np.unique(number[inside], return_counts=True)
    return int((sizes >= SMALLEST_PART * sizes.max()).sum()) if len(sizes) else 0


def cut_off(mask: Array) -> float:
    """Share of the mask outside of the square in the picture's middle."""
    height, width = mask.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    whole = float(mask.sum())
    return 1 - float(mask[top:top + side, left:left + side].sum()) / whole if whole else 0.0


def lab(rgb: Array) -> Array:
    """CIE L*a*b* (D65) of sRGB in 0…1."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055)**2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / np.array([0.9505, 1, 1.089])
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def _box_blurred(values: Array, axis: int) -> Array:
    pad = [(REBLUR + 1, REBLUR) if number == axis else (0, 0) for number in range(2)]
    sums = np.pad(values, pad, mode="edge").cumsum(axis, dtype=np.float64)
    length, width = values.shape[axis], 2 * REBLUR + 1
    high, low = (sums.take(np.arange(first, first + length), axis) for first in (width, 0))
    return ((high - low) / width).astype(np.float32)


def _tiles(values: Array) -> Array:
    """Sums over tiles; what is left at the right and lower edge is not counted, unless there is no whole tile."""
    height, width = (max(TILE, length // TILE * TILE) for length in values.shape)
    whole = np.zeros((height, width), np.float32)
    part = values[:height, :width]
    whole[:part.shape[0], :part.shape[1]] = part
    return whole.reshape(height // TILE, TILE, width // TILE, TILE).sum((1, 3))


def _resized(mask: Array, height: int, width: int) -> Array:
    image = Image.fromarray(np.asarray(mask, np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BOX))
