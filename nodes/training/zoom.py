"""Custom Diffusion's augmentation (Kumari et al. 2023): the subject farther away or closer, and the prompt says so."""
from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .seeds import generator

SMALLER_PROBABILITY = 2 / 3
LEAST, CLOSER, CLOSEST = 1 / 3, 1.2, 1.4  # of the square's side
FAR = 0.6
FAR_AWAY, CLOSE_UP = ("a far away ", "very small "), ("zoomed in ", "close up ")
_ARTICLES = ("a ", "an ")
_DRAWS = 6


@dataclass(frozen=True)
class Framing:
    """How a variant of a picture stands in its square of pixels.

    prefix: words with which its prompt begins, or "". region: top, left and side of the picture where grey is around
    it, which the loss leaves out; None where there is none.
    """

    prefix: str = ""
    region: tuple[int, int, int] | None = None

    def prompt(self, text: str) -> str:
        """The text with the prefix, "a photo" as "a far away photo"."""
        article = next((each for each in _ARTICLES if self.prefix and text.startswith(each)), "")
        return f"a {self.prefix.removeprefix('a ')}{text.removeprefix(article)}" if article else self.prefix + text

    def valid(self, height: int, width: int, factor: int) -> Tensor:
        """(height, width) of latent pixels, each `factor` pixels wide: 1 in the region less one latent pixel on each
        side, as released, else 0."""
        cells = torch.ones(height, width)
        if self.region is not None:
            top, left, side = self.region
            cells.zero_()
            cells[_inside(top, side, factor, height), _inside(left, side, factor, width)] = 1
        return cells


WHOLE = Framing()


@dataclass(frozen=True)
class Zoom:
    """One variant. scale: side in pixels of the whole picture; larger than the square it is cropped. top, left: of the
    picture in the square, or of the square in the picture."""

    scale: int
    top: int
    left: int
    mirrored: bool
    framing: Framing


@lru_cache(maxsize=1024)
def zooms(size: int, count: int, seed: int, index: int) -> tuple[Zoom, ...]:
    """`count` variants of picture `index` in a square of `size` pixels.

    As released: with probability 2/3 the scale is one of size/3 … size, else one of 1.2 … 1.4 of size; the place is
    even over all, mirrored half of the time.
    """
    draws = torch.rand(count, _DRAWS, generator=generator(seed, "zoom", index)).tolist()
    return tuple(_zoom(size, *draw) for draw in draws)


def zoomed(square: Tensor, size: int, zoom: Zoom, keep: tuple[int, int] | None) -> Tensor:
    """(C, size, size) of a picture (3 or 4, scale, scale); grey around it, and 0 in the mask.

    keep: (row, column) of the picture that a crop holds which would else hold nothing of the mask.
    """
    square = square.flip(-1) if zoom.mirrored else square
    top, left = zoom.top, zoom.left
    if zoom.scale > size:
        if keep is not None and not square[3:, top:top + size, left:left + size].any():
            column = zoom.scale - 1 - keep[1] if zoom.mirrored else keep[1]
            top, left = _holding(top, keep[0], size), _holding(left, column, size)
        return square[:, top:top + size, left:left + size]
    canvas = square.new_full((len(square), size, size), 0.5)
    canvas[3:] = 0
    canvas[:, top:top + zoom.scale, left:left + zoom.scale] = square
    return canvas


def _zoom(size: int, smaller: float, scale: float, down: float, right: float, mirror: float, word: float) -> Zoom:
    if smaller < SMALLER_PROBABILITY:
        side = _between(int(size * LEAST), size + 1, scale)
    else:
        side = _between(int(size * CLOSER), int(size * CLOSEST), scale)
    top, left = (int(place * (abs(size - side) + 1)) for place in (down, right))
    words = FAR_AWAY if side < FAR * size else CLOSE_UP if side > size else ("",)
    framing = Framing(words[int(word * len(words))], (top, left, side) if side <= size else None)
    return Zoom(side, top, left, mirror < 0.5, framing)


def _between(first: int, end: int, place: float) -> int:
    return first + int(place * max(1, end - first))


def _inside(start: int, side: int, factor: int, cells: int) -> slice:
    """The region's latent pixels less one on each side; at least one."""
    first = min(start // factor + 1, cells - 1)
    return slice(first, max((start + side) // factor - 1, first + 1))


def _holding(start: int, place: int, size: int) -> int:
    return min(max(start, place - size + 1), place)
