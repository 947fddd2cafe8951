"""Draws a scene: 128 × 128 pixels, exact masks, the same bytes for the same scene on one installation."""
from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from .backgrounds import paint_background
from .factors import Color, Identity, Scene, color_rgb
from .shapes import ACCESSORY_ANCHOR, ACCESSORY_SHAPES, PAINTS, PROP_SHAPES, PROP_TOPS, SUBJECTS, Shape

SIZE = 128
_OVER = 2                      # supersampling of the picture
_CANVAS = SIZE * _OVER
LOCAL = 288                    # pixels of a shape's own square, before it is placed
_MARGIN = 0.28                 # free border around the 100 units, so that hats fit
REACH = 1 + 2 * _MARGIN        # the square's side beside the 100 units
_UNIT = LOCAL / (100 * REACH)
TURN = {"standing": 0.0, "lying": 90.0, "jumping": -22.0, "upside down": 180.0}  # degrees, clockwise
STRIPE = 17.0                  # width of a stripe in final pixels: two cells of the autoencoder
_INK = (30, 26, 36)
_PAPER = (252, 246, 232)


@dataclass(frozen=True)
class Drawing:
    """One picture and the truth about it.

    picture: (128, 128, 3) uint8. Masks: (128, 128) float32 coverage in 0..1: ``subject`` is the silhouette without
    accessory, ``accessory`` and ``second`` lie on their own, ``background`` is what is left; the four sum to 1.
    """

    scene: Scene
    picture: np.ndarray
    subject: np.ndarray
    accessory: np.ndarray
    second: np.ndarray
    background: np.ndarray


@dataclass
class _Layer:
    """Colours and coverage of one thing; ``color`` is meaningful also outside the coverage."""

    color: Image.Image
    cover: Image.Image

    def place(self, inverse: tuple[float, ...]) -> _Layer:
        size, how = (_CANVAS, _CANVAS), Image.Resampling.BILINEAR
        return _Layer(
            self.color.transform(size, Image.Transform.AFFINE, inverse, how),
            self.cover.transform(size, Image.Transform.AFFINE, inverse, how),
        )


def _draw_part(pen: ImageDraw.ImageDraw, form: str, numbers: tuple[float, ...], fill: object) -> None:
    p = [(value + 100 * _MARGIN) * _UNIT for value in numbers]
    width = round(numbers[0] * _UNIT)
    if form == "ellipse":
        pen.ellipse(p, fill=fill)
    elif form == "rect":
        pen.rectangle(p, fill=fill)
    elif form == "round":
        pen.rounded_rectangle(p[:4], numbers[4] * _UNIT, fill=fill)
    elif form == "poly":
        pen.polygon(p, fill=fill)
    elif form == "dome":
        pen.pieslice(p, 180, 360, fill=fill)
    elif form == "ring":
        pen.ellipse(p[:4], outline=fill, width=round(numbers[4] * _UNIT))
    elif form == "line":
        pen.line(p[1:], fill=fill, width=width, joint="curve")
    else:
        raise ValueError(f"unknown form {form!r}")


@lru_cache(maxsize=64)
def covers(shape: Shape) -> tuple[Image.Image, Image.Image]:
    """On a shape's own square, 255 each: where its body is seen, and all that it covers."""
    body, whole = (Image.new("L", (LOCAL, LOCAL), 0) for _ in range(2))
    for paint, form, *numbers in shape.parts:
        _draw_part(ImageDraw.Draw(body), form, tuple(numbers), 255 * (paint == "body"))
        _draw_part(ImageDraw.Draw(whole), form, tuple(numbers), 255)
    return body, whole


@lru_cache(maxsize=64)
def body_middle(shape: Shape) -> tuple[int, int]:
    """(x, y) in local pixels: half of the body that can be seen lies left of it, and half above."""
    rows, columns = np.asarray(covers(shape)[0]).nonzero()
    return int(np.median(columns)), int(np.median(rows))


def stripe_width(size: float) -> int:
    """Local pixels of a stripe on a subject whose 100 units are ``size`` of the picture's side."""
    return round(100 * STRIPE * _UNIT / (size * SIZE))


@lru_cache(maxsize=512)
def pattern_cover(pattern: str, stripe: int, middle: tuple[int, int]) -> Image.Image:
    """Where the second colour shows on a shape's own square; ``stripe``: the coarsest width in local pixels;
    ``middle``: the body's, where the pattern is centred, so that both colours show on every shape."""
    y, x = np.mgrid[0:LOCAL, 0:LOCAL].astype(np.float32)
    x, y = x - middle[0], y - middle[1]
    if pattern == "plain":
        on = np.zeros_like(x, bool)
    elif pattern == "striped":
        on = np.floor(x / stripe + 0.5) % 2 == 1
    elif pattern == "banded":
        on = np.floor(y / stripe + 0.5) % 2 == 1
    elif pattern == "checkered":
        on = (np.floor(x / stripe) + np.floor(y / stripe)) % 2 == 1
    elif pattern == "two-tone":
        on = y > 0
    elif pattern == "spotted":
        pitch = 1.5 * stripe
        row = np.floor(y / pitch)
        u, v = (x + row % 2 * pitch / 2) % pitch - pitch / 2, y - (row + 0.5) * pitch
        on = u * u + v * v < (0.56 * stripe) ** 2
    elif pattern == "diagonal":
        on = np.floor((x + y) / (1.35 * stripe)) % 2 == 1
    elif pattern == "rings":
        on = np.floor(np.hypot(x, y) / stripe) % 2 == 1
    else:
        raise ValueError(f"unknown pattern {pattern!r}")
    return Image.fromarray((on * 255).astype(np.uint8))


def _eroded(cover: Image.Image, by: int) -> Image.Image:
    """A cover without its outermost ``by`` pixels (minimum over eight directions)."""
    inner, slant = cover, round(by * 0.7)
    straight = ((by, 0), (-by, 0), (0, by), (0, -by))
    for dx, dy in (*straight, (slant, slant), (slant, -slant), (-slant, slant), (-slant, -slant)):
        inner = ImageChops.darker(inner, ImageChops.offset(cover, dx, dy))
    return inner


def _shape_layer(shape: Shape, texture: Image.Image | None, outlined: bool) -> _Layer:
    color = texture.copy() if texture is not None else Image.new("RGB", (LOCAL, LOCAL), PAINTS[shape.parts[0][0]])
    for paint, form, *numbers in shape.parts:
        if paint == "body":
            part = Image.new("L", (LOCAL, LOCAL), 0)
            _draw_part(ImageDraw.Draw(part), form, tuple(numbers), 255)
            color.paste(texture, (0, 0), part)
        else:
            _draw_part(ImageDraw.Draw(color), form, tuple(numbers), PAINTS[paint])
    cover = covers(shape)[1]
    if outlined:
        color = Image.composite(color, Image.new("RGB", color.size, _INK), _eroded(cover, 4))
    return _Layer(color, cover)


def _subject_layer(identity: Identity, scale: float, outlined: bool, rng: random.Random) -> _Layer:
    def tinted(color: Color) -> tuple[int, int, int]:
        return color_rgb(color, (rng.uniform(-0.008, 0.008), rng.uniform(-0.02, 0.02)))

    stripe = stripe_width(scale * 100 / _CANVAS)
    texture = Image.new("RGB", (LOCAL, LOCAL), tinted(identity.first))
    shape = SUBJECTS[identity.kind]
    texture.paste(tinted(identity.second), (0, 0), pattern_cover(identity.pattern, stripe, body_middle(shape)))
    return _shape_layer(shape, texture, outlined)


def _placement(scale: float, degrees: float, x: float, y: float) -> tuple[float, ...]:
    """Inverse affine map: centre of the 100-unit square to (x, y) canvas pixels, ``scale`` canvas pixels a unit."""
    k = _UNIT / scale
    c, s = k * np.cos(np.radians(degrees)), k * np.sin(np.radians(degrees))
    middle = LOCAL / 2
    return c, s, middle - c * x - s * y, -s, c, middle + s * x - c * y


def _accessory_placement(
    kind: str, shape: Shape, scale: float, degrees: float, x: float, y: float
) -> tuple[float, ...]:
    """Inverse affine map that puts the accessory's anchor on the wearer's."""
    _, fit, anchor_y = ACCESSORY_SHAPES[kind]
    at_x, at_y, width = getattr(shape, ACCESSORY_ANCHOR[kind])
    own = scale * width * fit / 100
    # The accessory's anchor, in units from its centre, must land on the subject's anchor.
    dx, dy = at_x - 50, (at_y - 50) - (anchor_y - 50) * own / scale
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return _placement(own, degrees, x + scale * (c * dx - s * dy), y + scale * (s * dx + c * dy))


_SHADES = np.linspace(1.12, 0.86, _CANVAS)[:, None]


def _shaded(layer: _Layer) -> Image.Image:
    """Light from the upper left, rounder edges: what makes the photo style look solid."""
    box = layer.cover.getbbox()
    if box is None:
        return layer.color
    soft = np.asarray(layer.cover.crop(box).filter(ImageFilter.BoxBlur(9)), np.float32) / 255
    lit = np.zeros_like(soft)
    lit[5:-5, 5:-5] = soft[10:, 10:] - soft[:-10, :-10]
    shade = (0.80 + 0.24 * soft + 0.55 * lit) * _SHADES[box[1]:box[3]]
    color = layer.color.copy()
    pixels = np.asarray(color.crop(box), np.float32) * np.clip(shade, 0.5, 1.4)[..., None]
    color.paste(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), box[:2])
    return color


def _cast_shadow(picture: Image.Image, x: float, ground: float, width: float, photo: bool) -> None:
    shadow = Image.new("L", picture.size, 0)
    half, flat = width * 0.46, width * 0.09
    ImageDraw.Draw(shadow).ellipse([x - half, ground - flat, x + half, ground + flat], fill=130 if photo else 90)
    if photo:
        shadow = shadow.filter(ImageFilter.BoxBlur(5))
    picture.paste((12, 12, 24), (0, 0), shadow)


def _restyle(picture: Image.Image, photo: bool) -> Image.Image:
    """Background of a photo: a little out of focus. Of a drawing: pale colours on paper."""
    if photo:
        return picture.filter(ImageFilter.BoxBlur(1.5))
    return Image.blend(picture, Image.new("RGB", picture.size, _PAPER), 0.55)


@dataclass(frozen=True)
class _Layout:
    """Canvas pixels: subject size and centre, rotation, its ground, second object's size and centre."""

    size: float
    x: float
    y: float
    degrees: float
    ground: float
    second_size: float = 0.0
    second_x: float = 0.0
    second_y: float = 0.0


@lru_cache(maxsize=4096)
def _lowest(kind: str, degrees: int) -> float:
    """How far the lowest point of a turned subject lies below the centre of its square, in units."""
    cover = covers(SUBJECTS[kind])[1].reduce(4).rotate(-degrees)
    return (cover.getbbox()[3] * 4 - LOCAL / 2) / _UNIT


def _hat_top(scene: Scene) -> float:
    """How far a hat or crown reaches above the centre of its wearer's square, in units."""
    _, fit, anchor_y = ACCESSORY_SHAPES[scene.accessory]
    _, brim, width = SUBJECTS[scene.identity.kind].hat
    return 50 - brim + (anchor_y - 10) * width * fit / 100


def _layout(scene: Scene, rng: random.Random) -> _Layout:
    degrees = TURN[scene.pose] + rng.uniform(-4, 4)
    below = _lowest(scene.identity.kind, round(degrees)) / 100
    jumping, second = scene.pose == "jumping", scene.second
    ground = rng.uniform(0.87, 0.93)
    lift = rng.uniform(0.15, 0.20) if jumping else 0.0
    wears = scene.accessory in ("hat", "crown")
    tall, aside = 0.10 if wears else 0.0, 0.05 if wears and scene.pose == "lying" else 0.0
    if wears and scene.pose == "upside down":
        below = _hat_top(scene) / 100
    if second is None:
        size = rng.uniform(0.60, 0.70) - tall - (0.09 if jumping else 0.0)
        x = rng.uniform(0.5 - 0.12, 0.5 + 0.12) - aside
        return _Layout(size, x, ground - lift - below * size, degrees, ground)
    if second.relation == "on top of":
        other, size = rng.uniform(0.34, 0.38), rng.uniform(0.44, 0.50) - tall * 0.6
        x, lift = rng.uniform(0.38, 0.62) - aside, lift * 0.6
        top = ground - other * (0.98 - PROP_TOPS[second.kind] / 100)
        return _Layout(size, x, top - lift - below * size + 0.01, degrees, top, other, x, ground - 0.48 * other)
    side = rng.choice((-1, 1))
    size, other = rng.uniform(0.50, 0.55) - tall * 0.5, rng.uniform(0.36, 0.42)
    x = 0.5 - side * rng.uniform(0.21, 0.23) - aside
    y, second_x = ground - lift - below * size, 0.5 + side * rng.uniform(0.25, 0.28)
    return _Layout(size, x, y, degrees, ground, other, second_x, ground - 0.48 * other)


def _seen(canvas: Image.Image) -> np.ndarray:
    """At the picture's own size, a little soft as a lens is: detail that 8 × compression cannot keep is not drawn."""
    return np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def _coverage(mask: Image.Image) -> np.ndarray:
    return _seen(mask).astype(np.float32) / 255


def draw(scene: Scene) -> Drawing:
    """Draw one scene. Deterministic: nothing but ``scene`` decides (its seed covers placement and decorations)."""
    rng = random.Random(scene.seed)
    photo = scene.style == "photo"
    at = _layout(scene, rng)
    colors = random.Random(rng.random())
    picture, _ = paint_background(scene.background, _CANVAS, random.Random(rng.random()))
    picture = _restyle(picture, photo)
    empty = Image.new("L", picture.size, 0)
    second_cover = empty

    def put(layer: _Layer) -> None:
        picture.paste(_shaded(layer) if photo else layer.color, (0, 0), layer.cover)

    n = _CANVAS
    if scene.second is not None:
        _cast_shadow(picture, at.second_x * n, (at.second_y + 0.48 * at.second_size) * n, at.second_size * n, photo)
    if scene.second is None or scene.second.relation == "next to":
        _cast_shadow(picture, at.x * n, at.ground * n, at.size * n, photo)
    if scene.second is not None:
        scale = at.second_size * n / 100
        other = scene.second.identity
        if other is not None:
            local = _subject_layer(other, scale, not photo, colors)
        else:
            local = _shape_layer(PROP_SHAPES[scene.second.kind], None, not photo)
        layer = local.place(_placement(scale, 0.0, at.second_x * n, at.second_y * n))
        put(layer)
        second_cover = layer.cover
    scale = at.size * n / 100
    local = _subject_layer(scene.identity, scale, not photo, colors)
    subject = local.place(_placement(scale, at.degrees, at.x * n, at.y * n))
    put(subject)
    accessory_cover = empty
    if scene.accessory != "none":
        wearer = SUBJECTS[scene.identity.kind]
        inverse = _accessory_placement(scene.accessory, wearer, scale, at.degrees, at.x * n, at.y * n)
        layer = _shape_layer(ACCESSORY_SHAPES[scene.accessory][0], None, not photo).place(inverse)
        put(layer)
        accessory_cover = layer.cover
    return _finish(scene, picture, subject.cover, accessory_cover, second_cover)


def _finish(scene: Scene, picture: Image.Image, subject: Image.Image, accessory: Image.Image,
            second: Image.Image) -> Drawing:
    """Turn stacked covers (second below subject below accessory) into shares of each pixel."""
    above = ImageChops.invert(accessory)
    subject_seen = ImageChops.multiply(subject, above)
    second_seen = ImageChops.multiply(second, ImageChops.multiply(ImageChops.invert(subject), above))
    shares = [_coverage(mask) for mask in (subject_seen, accessory, second_seen)]
    rest = np.clip(1 - sum(shares), 0, 1)
    return Drawing(scene, _seen(picture), *shares, rest)
