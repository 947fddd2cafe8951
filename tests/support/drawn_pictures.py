"""Pictures drawn with known faults: a subject before a background, sharp or blurred, again or anew."""
from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

BACKGROUNDS = {"orange": (226, 96, 20), "green": (60, 120, 50), "grey": (128, 128, 132), "blue": (40, 70, 170),
               "white": (240, 238, 235)}


def drawn(background: str, pose: int, width: int = 640, height: int = 480) -> Image.Image:
    """A spotted brown animal at a place and of a size that `pose` decides, before a cloth with a weave of its own."""
    draws = np.random.default_rng([pose, *background.encode()])
    noise = draws.normal(0, 4, (height, width, 3))
    image = Image.fromarray((np.array(BACKGROUNDS[background]) + noise).clip(0, 255).astype(np.uint8))
    draws = np.random.default_rng(pose)
    pen = ImageDraw.Draw(image)
    radius = draws.uniform(0.2, 0.3) * min(width, height)
    x, y = draws.uniform(0.4, 0.6) * width, draws.uniform(0.45, 0.65) * height
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), (120, 70, 40))
    for _ in range(60):
        angle, away = draws.uniform(0, 2 * np.pi), radius * draws.uniform(0, 0.9)
        spot = radius * draws.uniform(0.03, 0.15)
        left, top = x + away * np.cos(angle), y + away * np.sin(angle)
        colour = tuple(draws.integers(0, 255, 3).tolist())
        pen.ellipse((left - spot, top - spot, left + spot, top + spot), colour)
    return image


def blurred(image: Image.Image, pixels: float) -> Image.Image:
    """By a Gaussian of that standard deviation."""
    return image.filter(ImageFilter.GaussianBlur(pixels))


def again(image: Image.Image) -> dict[str, Image.Image]:
    """The same picture as people come by it twice."""
    width, height = image.size
    return {"smaller": image.resize((width // 2, height // 2)),
            "JPEG": Image.open(BytesIO(encoded(image, quality=30))),
            "cropped": image.crop((width // 20, 0, width, height - height // 12)),
            "mirrored": ImageOps.mirror(image),
            "brighter": image.point(lambda level: min(255, level * 5 // 4))}


def encoded(image: Image.Image, kind: str = "JPEG", **how) -> bytes:
    """Its file."""
    data = BytesIO()
    image.save(data, kind, **how)
    return data.getvalue()
