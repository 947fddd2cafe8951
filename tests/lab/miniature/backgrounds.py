"""Twelve places, each with its own sky, ground and two or three large things that no other place has."""
from __future__ import annotations

import random
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

RGB = tuple[int, int, int]


@lru_cache(maxsize=64)
def _ramp(top: RGB, bottom: RGB, size: int) -> Image.Image:
    t = np.linspace(0.0, 1.0, size)[:, None, None]
    rows = (1 - t) * np.array(top) + t * np.array(bottom)
    return Image.fromarray(np.broadcast_to(rows, (size, size, 3)).round().astype(np.uint8))


class Place:
    """A canvas of ``size`` pixels with the horizon at ``ground``; coordinates are fractions of the size."""

    def __init__(self, size: int, rng: random.Random):
        self.size, self.rng = size, rng
        self.horizon = rng.uniform(0.52, 0.62)
        self.flip = rng.random() < 0.5
        self.picture = Image.new("RGB", (size, size))
        self.pen = ImageDraw.Draw(self.picture)

    def sky(self, top: RGB, bottom: RGB) -> None:
        self.picture.paste(_ramp(top, bottom, self.size))

    def ground(self, color: RGB, far: RGB | None = None, top: float | None = None) -> None:
        top = self.horizon if top is None else top
        edge = int(top * self.size)
        self.picture.paste(_ramp(far or color, color, self.size).crop((0, 0, self.size, self.size - edge)), (0, edge))

    def _x(self, x: float) -> float:
        return (1 - x if self.flip else x) * self.size

    def poly(self, color: RGB, *points: float) -> None:
        xy = [(self._x(x), y * self.size) for x, y in zip(points[::2], points[1::2])]
        self.pen.polygon(xy, fill=color)

    def disc(self, color: RGB, x: float, y: float, radius: float, flat: float = 1.0) -> None:
        cx, cy, r = self._x(x), y * self.size, radius * self.size
        self.pen.ellipse([cx - r, cy - r * flat, cx + r, cy + r * flat], fill=color)

    def bar(self, color: RGB, x0: float, y0: float, x1: float, y1: float) -> None:
        a, b = sorted((self._x(x0), self._x(x1)))
        self.pen.rectangle([a, y0 * self.size, b, y1 * self.size], fill=color)

    def jitter(self, value: float, by: float = 0.03) -> float:
        return value + self.rng.uniform(-by, by)


def _beach(p: Place) -> None:
    p.sky((110, 196, 250), (206, 236, 252))
    p.disc((255, 244, 150), p.jitter(0.16), p.jitter(0.14), 0.09)
    p.bar((30, 116, 200), 0, p.horizon - 0.13, 1, p.horizon)
    p.ground((240, 214, 150), (248, 230, 178))
    x = p.jitter(0.88)
    p.poly((146, 100, 60), x - 0.02, p.horizon + 0.2, x + 0.03, p.horizon + 0.2, x + 0.01, 0.2, x - 0.03, 0.2)
    for dx, dy in ((-0.2, 0.06), (-0.15, -0.09), (0.2, 0.06), (0.15, -0.09)):
        p.poly((40, 150, 70), x - 0.01, 0.17, x + dx, 0.2 + dy, x + dx * 0.4, 0.25 + dy * 0.4)


def _snow(p: Place) -> None:
    p.sky((168, 184, 206), (214, 224, 236))
    for x in (0.08, 0.3, 0.9):
        x, top = p.jitter(x), p.jitter(0.2, 0.06)
        p.poly((44, 92, 84), x - 0.14, p.horizon + 0.04, x, top, x + 0.14, p.horizon + 0.04)
        p.poly((248, 250, 255), x - 0.06, top + 0.15, x, top, x + 0.06, top + 0.15)
    p.ground((250, 252, 255), (232, 240, 250))
    for _ in range(16):
        p.disc((255, 255, 255), p.rng.random(), p.rng.uniform(0.02, 0.55), 0.02)


def _jungle(p: Place) -> None:
    p.sky((20, 84, 44), (36, 116, 52))
    for x in (0.1, 0.42, 0.84):
        x = p.jitter(x, 0.05)
        p.bar((84, 62, 36), x - 0.045, 0, x + 0.045, p.horizon + 0.05)
    p.ground((24, 74, 30), (30, 92, 38))
    for _ in range(9):
        x, y, s = p.rng.random(), p.rng.uniform(-0.02, 0.3), p.rng.uniform(0.1, 0.16)
        leaf = (p.rng.randint(50, 90), p.rng.randint(160, 190), 60)
        p.poly(leaf, x, y, x + s, y + s * 0.7, x, y + s * 1.9, x - s, y + s * 0.7)


def _city(p: Place) -> None:
    p.sky((176, 190, 208), (220, 222, 222))
    x = -p.rng.uniform(0, 0.1)
    while x < 1:
        width, height, grey = p.rng.uniform(0.16, 0.24), p.rng.uniform(0.26, 0.5), p.rng.randint(84, 126)
        p.bar((grey, grey, grey + 14), x, p.horizon - height, x + width, p.horizon)
        for row in range(int((height - 0.04) / 0.1)):
            for column in (0.25, 0.68):
                wx, wy = x + width * column, p.horizon - height + 0.04 + row * 0.1
                p.bar((255, 232, 130), wx - 0.024, wy, wx + 0.024, wy + 0.055)
        x += width + 0.012
    p.ground((86, 86, 94), (104, 104, 110))
    for x in (0.02, 0.38, 0.74):
        p.bar((240, 240, 240), x, 0.9, x + 0.2, 0.935)


def _moon(p: Place) -> None:
    p.sky((4, 4, 14), (14, 14, 34))
    for _ in range(14):
        p.disc((255, 255, 255), p.rng.random(), p.rng.uniform(0.02, 0.5), 0.011)
    p.disc((60, 130, 220), p.jitter(0.18), p.jitter(0.2), 0.1)
    p.ground((160, 160, 164), (132, 132, 138))
    for x, y in ((0.14, 0.7), (0.5, 0.66), (0.86, 0.72), (0.3, 0.88), (0.74, 0.92)):
        p.disc((106, 106, 112), p.jitter(x), p.jitter(y), p.jitter(0.085, 0.015), 0.4)


def _desert(p: Place) -> None:
    p.sky((252, 168, 84), (255, 222, 160))
    p.disc((255, 250, 200), p.jitter(0.8), p.jitter(0.16), 0.09)
    p.poly((226, 160, 92), -0.2, p.horizon + 0.02, 0.2, p.horizon - 0.16, 0.7, p.horizon + 0.02)
    p.ground((204, 134, 66), (224, 158, 86))
    x = p.jitter(0.12)
    p.bar((56, 130, 62), x - 0.035, 0.32, x + 0.035, p.horizon + 0.16)
    p.bar((56, 130, 62), x + 0.03, 0.46, x + 0.13, 0.51)
    p.bar((56, 130, 62), x + 0.085, 0.36, x + 0.13, 0.5)


def _night(p: Place) -> None:
    p.sky((10, 16, 60), (36, 44, 104))
    for _ in range(9):
        p.disc((255, 250, 200), p.rng.random(), p.rng.uniform(0.02, 0.5), 0.012)
    x, y = p.jitter(0.17), p.jitter(0.17)
    p.disc((250, 240, 180), x, y, 0.11)
    p.disc((14, 21, 68), x + 0.055, y - 0.02, 0.095)
    p.disc((14, 40, 44), 0.8, p.horizon + 0.22, 0.4)
    p.ground((16, 40, 40), (20, 52, 50), p.horizon + 0.06)


def _carpet(p: Place) -> None:
    p.sky((238, 220, 186), (226, 204, 164))
    for x in (0.03, 0.29, 0.71, 0.97):
        p.bar((198, 150, 60), x - 0.045, 0.0, x + 0.045, p.horizon)
        p.bar((236, 200, 110), x - 0.02, 0.0, x + 0.01, p.horizon)
    p.ground((120, 84, 70), (136, 98, 80))
    p.poly((196, 20, 34), 0.3, p.horizon, 0.7, p.horizon, 1.02, 1.0, -0.02, 1.0)


def _ocean(p: Place) -> None:
    p.sky((70, 200, 220), (8, 96, 150))
    for x in (0.14, 0.6):
        p.poly((112, 216, 228), p.jitter(x), 0, p.jitter(x) + 0.14, 0, x - 0.02, 0.6, x - 0.16, 0.6)
    p.ground((150, 158, 110), (94, 140, 130), 0.83)
    for x in (0.06, 0.2, 0.93):
        x = p.jitter(x)
        p.poly((20, 130, 90), x - 0.03, 0.94, x - 0.07, 0.6, x, 0.72, x + 0.04, 0.45, x + 0.04, 0.94)
    for _ in range(7):
        p.disc((196, 240, 248), p.rng.random(), p.rng.uniform(0.04, 0.6), p.rng.uniform(0.018, 0.032))


def _meadow(p: Place) -> None:
    p.sky((120, 190, 250), (214, 236, 254))
    for x, y in ((0.2, 0.14), (0.78, 0.2)):
        x, y = p.jitter(x), p.jitter(y)
        for dx, r in ((-0.09, 0.06), (0.0, 0.085), (0.09, 0.06)):
            p.disc((255, 255, 255), x + dx, y, r, 0.8)
    p.ground((74, 172, 60), (126, 206, 84))
    for _ in range(11):
        color = p.rng.choice(((250, 70, 90), (255, 230, 80), (255, 255, 255)))
        p.disc(color, p.rng.random(), p.rng.uniform(p.horizon + 0.06, 0.97), 0.024)


def _volcano(p: Place) -> None:
    p.sky((70, 12, 18), (190, 60, 30))
    x = p.jitter(0.5, 0.1)
    p.poly((44, 34, 40), x - 0.55, p.horizon, x - 0.12, 0.16, x + 0.12, 0.16, x + 0.55, p.horizon)
    p.poly((255, 130, 20), x - 0.12, 0.16, x + 0.12, 0.16, x + 0.17, 0.42, x + 0.07, 0.3, x - 0.02, 0.5, x - 0.08, 0.28)
    p.ground((52, 40, 46), (40, 32, 38))
    for y in (0.72, 0.92):
        y = p.jitter(y, 0.02)
        p.poly((255, 110, 16), -0.02, y, 0.36, y - 0.03, 0.62, y + 0.02, 1.02, y - 0.02,
               1.02, y + 0.035, 0.6, y + 0.07, 0.3, y + 0.02, -0.02, y + 0.05)


def _kitchen(p: Place) -> None:
    p.sky((250, 238, 196), (246, 226, 176))
    x = p.jitter(0.2)
    p.bar((255, 255, 255), x - 0.17, 0.06, x + 0.17, 0.42)
    p.bar((146, 206, 246), x - 0.14, 0.09, x - 0.015, 0.39)
    p.bar((146, 206, 246), x + 0.015, 0.09, x + 0.14, 0.39)
    p.bar((86, 140, 140), 0.66, 0.05, 0.98, 0.34)
    p.bar((60, 104, 106), 0.815, 0.05, 0.83, 0.34)
    p.ground((228, 232, 236))
    for row in range(int((1 - p.horizon) / 0.13) + 1):
        top = p.horizon + row * 0.13
        for column in range(row % 2, 8, 2):
            p.bar((90, 110, 150), column / 8 + 0.001, top, (column + 1) / 8, min(1.0, top + 0.13))


_PAINTERS = {
    "beach": _beach, "snow": _snow, "jungle": _jungle, "city": _city, "moon": _moon, "desert": _desert, "night": _night,
    "carpet": _carpet, "ocean": _ocean, "meadow": _meadow, "volcano": _volcano, "kitchen": _kitchen,
}


def paint_background(name: str, size: int, rng: random.Random) -> tuple[Image.Image, float]:
    """The place ``name`` on a square of ``size`` pixels, and its horizon as a fraction of the height."""
    place = Place(size, rng)
    _PAINTERS[name](place)
    return place.picture, place.horizon
