"""The silhouettes: every subject and prop as a list of primitives on a square of 100 × 100 units (y points down).

A primitive is ``(paint, form, numbers...)``. Paint "body" shows the subject's own pattern, any other paint is a fixed
colour of PAINTS. Forms: ellipse, rect (x0 y0 x1 y1), round (x0 y0 x1 y1 radius), poly (x y ...), dome (upper half of an
ellipse x0 y0 x1 y1), ring (x0 y0 x1 y1 width), line (width x y ...).
"""
from __future__ import annotations

from dataclasses import dataclass

PAINTS = {
    "ink": (34, 30, 40), "white": (250, 250, 250), "glass": (196, 226, 244), "beak": (248, 168, 40),
    "skin": (150, 186, 96), "cream": (244, 228, 196), "wood": (164, 110, 60), "darkwood": (112, 72, 40),
    "metal": (150, 156, 166), "lamp": (255, 236, 120), "flame": (255, 150, 30), "pink": (240, 140, 160),
    "red": (216, 40, 44), "blue": (50, 90, 210), "gold": (250, 204, 40), "black": (28, 28, 34),
    "berry": (196, 60, 110), "green": (50, 150, 70),
}

Primitive = tuple


@dataclass(frozen=True)
class Shape:
    """``hat`` (brim), ``scarf``, ``glasses`` (middle): where accessories sit, as (centre x, y, width)."""

    parts: tuple[Primitive, ...]
    hat: tuple[float, float, float] = (50, 10, 30)
    scarf: tuple[float, float, float] = (50, 50, 40)
    glasses: tuple[float, float, float] = (50, 30, 36)


SUBJECTS: dict[str, Shape] = {
    "dog": Shape(
        (
            ("body", "line", 9, 18, 50, 8, 38, 5, 24),
            ("body", "round", 12, 42, 74, 74, 15),
            ("body", "rect", 14, 60, 25, 97), ("body", "rect", 28, 62, 39, 97),
            ("body", "rect", 48, 62, 59, 97), ("body", "rect", 62, 60, 73, 97),
            ("body", "ellipse", 54, 14, 90, 54), ("body", "round", 74, 30, 100, 50, 8),
            ("ink", "ellipse", 93, 29, 101, 39), ("darkwood", "ellipse", 50, 16, 65, 50),
            ("white", "ellipse", 71, 20, 82, 31), ("ink", "ellipse", 75, 22, 82, 30),
        ),
        hat=(72, 17, 32), scarf=(66, 54, 34), glasses=(78, 27, 34),
    ),
    "cat": Shape(
        (
            ("body", "line", 10, 70, 92, 88, 88, 94, 74, 90, 56),
            ("body", "ellipse", 24, 44, 76, 99), ("body", "poly", 22, 34, 24, 0, 50, 18),
            ("body", "poly", 78, 34, 76, 0, 50, 18), ("body", "ellipse", 20, 12, 80, 58),
            ("pink", "poly", 27, 20, 28, 8, 38, 15), ("pink", "poly", 73, 20, 72, 8, 62, 15),
            ("white", "ellipse", 30, 26, 45, 41), ("white", "ellipse", 55, 26, 70, 41),
            ("ink", "ellipse", 35, 27, 42, 41), ("ink", "ellipse", 58, 27, 65, 41),
            ("pink", "poly", 45, 43, 55, 43, 50, 49),
            ("ink", "line", 2, 8, 40, 26, 45), ("ink", "line", 2, 8, 52, 26, 49),
            ("ink", "line", 2, 92, 40, 74, 45), ("ink", "line", 2, 92, 52, 74, 49),
        ),
        hat=(50, 14, 36), scarf=(50, 59, 44), glasses=(50, 33, 50),
    ),
    "bird": Shape(
        (
            ("beak", "line", 5, 42, 72, 40, 97, 48, 97), ("beak", "line", 5, 56, 72, 54, 97, 62, 97),
            ("body", "poly", 28, 50, 0, 30, 2, 62), ("body", "ellipse", 14, 32, 76, 82),
            ("beak", "poly", 84, 24, 102, 33, 84, 40), ("body", "ellipse", 54, 10, 90, 50),
            ("white", "ellipse", 70, 19, 83, 32), ("ink", "ellipse", 75, 21, 82, 30),
            ("ink", "line", 3, 26, 54, 38, 64, 52, 58),
        ),
        hat=(71, 13, 32), scarf=(66, 50, 34), glasses=(76, 26, 34),
    ),
    "fish": Shape(
        (
            ("body", "poly", 34, 50, 4, 26, 4, 92, 34, 62), ("body", "poly", 42, 40, 48, 14, 76, 40),
            ("body", "ellipse", 22, 30, 98, 90), ("body", "poly", 50, 84, 62, 99, 72, 82),
            ("white", "ellipse", 76, 42, 90, 56), ("ink", "ellipse", 81, 45, 89, 54),
            ("ink", "line", 3, 96, 66, 84, 68),
        ),
        hat=(80, 36, 30), scarf=(66, 60, 30), glasses=(82, 49, 32),
    ),
    "rabbit": Shape(
        (
            ("body", "ellipse", 28, 0, 45, 48), ("body", "ellipse", 55, 0, 72, 48),
            ("pink", "ellipse", 33, 6, 41, 34), ("pink", "ellipse", 59, 6, 67, 34),
            ("white", "ellipse", 70, 74, 92, 95),
            ("body", "ellipse", 22, 56, 78, 99), ("body", "ellipse", 24, 30, 76, 70),
            ("ink", "ellipse", 34, 42, 43, 54), ("ink", "ellipse", 57, 42, 66, 54),
            ("pink", "poly", 45, 55, 55, 55, 50, 61), ("white", "rect", 45, 62, 55, 71),
        ),
        hat=(50, 32, 28), scarf=(50, 72, 42), glasses=(50, 48, 46),
    ),
    "turtle": Shape(
        (
            ("skin", "poly", 14, 74, 0, 84, 16, 86), ("skin", "round", 18, 74, 36, 98, 6),
            ("skin", "round", 54, 74, 72, 98, 6), ("skin", "round", 66, 66, 84, 84, 8),
            ("skin", "ellipse", 74, 44, 101, 76), ("body", "dome", 6, 22, 82, 138),
            ("skin", "round", 4, 76, 84, 86, 5),
            ("white", "ellipse", 84, 50, 95, 61), ("ink", "ellipse", 88, 52, 95, 60),
        ),
        hat=(87, 48, 26), scarf=(76, 72, 24), glasses=(88, 56, 28),
    ),
    "car": Shape(
        (
            ("body", "poly", 18, 52, 32, 22, 70, 22, 84, 52), ("body", "round", 1, 46, 99, 82, 10),
            ("glass", "poly", 27, 48, 37, 28, 49, 28, 49, 48), ("glass", "poly", 53, 48, 53, 28, 66, 28, 75, 48),
            ("ink", "ellipse", 12, 68, 38, 96), ("ink", "ellipse", 62, 68, 88, 96),
            ("metal", "ellipse", 20, 76, 30, 88), ("metal", "ellipse", 70, 76, 80, 88),
            ("lamp", "ellipse", 90, 52, 100, 64),
        ),
        hat=(50, 23, 34), scarf=(50, 58, 46), glasses=(52, 38, 46),
    ),
    "teapot": Shape(
        (
            ("body", "ring", 0, 38, 36, 80, 9), ("body", "poly", 68, 74, 88, 30, 101, 30, 80, 84),
            ("body", "ellipse", 18, 30, 80, 92), ("body", "round", 32, 88, 66, 97, 3),
            ("body", "dome", 30, 22, 68, 52), ("ink", "line", 3, 30, 38, 68, 38), ("ink", "ellipse", 43, 12, 55, 24),
        ),
        hat=(49, 20, 34), scarf=(49, 64, 50), glasses=(50, 54, 46),
    ),
    "robot": Shape(
        (
            ("metal", "line", 4, 50, 12, 50, 2), ("red", "ellipse", 44, 0, 56, 9),
            ("metal", "round", 6, 44, 20, 76, 5), ("metal", "round", 80, 44, 94, 76, 5),
            ("metal", "rect", 30, 80, 44, 98), ("metal", "rect", 56, 80, 70, 98),
            ("body", "round", 26, 10, 74, 42, 5), ("body", "round", 22, 44, 78, 84, 4),
            ("lamp", "ellipse", 33, 17, 46, 30), ("lamp", "ellipse", 54, 17, 67, 30),
            ("ink", "rect", 38, 34, 62, 38), ("ink", "line", 3, 22, 43, 78, 43),
        ),
        hat=(50, 12, 36), scarf=(50, 46, 46), glasses=(50, 24, 48),
    ),
    "boat": Shape(
        (
            ("darkwood", "line", 5, 48, 70, 48, 2), ("body", "poly", 53, 4, 96, 60, 53, 60),
            ("white", "poly", 43, 14, 43, 60, 10, 60), ("body", "poly", 0, 66, 100, 66, 84, 98, 18, 98),
        ),
        hat=(48, 12, 30), scarf=(50, 70, 46), glasses=(52, 82, 46),
    ),
    "mushroom": Shape(
        (
            ("cream", "round", 33, 48, 67, 98, 10), ("body", "dome", 2, 6, 98, 110),
            ("cream", "ellipse", 6, 52, 94, 64),
            ("ink", "ellipse", 41, 70, 47, 79), ("ink", "ellipse", 54, 70, 60, 79),
        ),
        hat=(50, 11, 36), scarf=(50, 66, 42), glasses=(50, 74, 42),
    ),
    "rocket": Shape(
        (
            ("flame", "poly", 36, 82, 64, 82, 50, 101), ("red", "poly", 32, 56, 10, 92, 36, 86),
            ("red", "poly", 68, 56, 90, 92, 64, 86), ("body", "round", 28, 26, 72, 86, 8),
            ("body", "dome", 28, 0, 72, 68), ("red", "dome", 36, 0, 64, 32), ("metal", "ellipse", 37, 34, 63, 60),
            ("glass", "ellipse", 41, 38, 59, 56),
        ),
        hat=(50, 6, 28), scarf=(50, 68, 46), glasses=(50, 47, 44),
    ),
}

PROP_SHAPES: dict[str, Shape] = {
    "ball": Shape((
        ("white", "ellipse", 6, 6, 94, 94), ("red", "poly", 50, 50, 8, 30, 34, 4, 66, 4),
        ("blue", "poly", 50, 50, 96, 34, 96, 74, 72, 94), ("gold", "poly", 50, 50, 4, 56, 20, 86, 48, 96),
    )),
    "box": Shape((
        ("wood", "rect", 5, 8, 95, 96),
        ("darkwood", "line", 9, 10, 13, 90, 91), ("darkwood", "line", 9, 90, 13, 10, 91),
        ("darkwood", "line", 9, 9, 12, 91, 12, 91, 92, 9, 92, 9, 12),
    )),
    "cake": Shape((
        ("berry", "rect", 12, 50, 88, 96), ("white", "round", 8, 36, 92, 62, 12), ("white", "ellipse", 18, 52, 38, 78),
        ("white", "ellipse", 60, 52, 80, 74), ("blue", "rect", 44, 16, 56, 40), ("flame", "ellipse", 43, 2, 57, 18),
    )),
    "drum": Shape((
        ("red", "rect", 8, 24, 92, 84), ("red", "ellipse", 8, 68, 92, 98),
        ("gold", "line", 6, 10, 34, 28, 86, 46, 36, 64, 88, 90, 34), ("gold", "ellipse", 6, 6, 94, 42),
        ("cream", "ellipse", 12, 11, 88, 37),
    )),
}
PROP_TOPS = {"ball": 6, "box": 8, "cake": 22, "drum": 22}

# Accessories on their own 100 × 100 square; (width at which they fit, anchor y inside the square).
ACCESSORY_SHAPES: dict[str, tuple[Shape, float, float]] = {
    "hat": (Shape((
        ("black", "round", 2, 78, 98, 100, 8), ("black", "rect", 20, 14, 80, 84), ("white", "rect", 20, 58, 80, 78),
    )), 1.15, 94),
    "crown": (Shape((
        ("gold", "poly", 6, 96, 0, 24, 26, 60, 50, 10, 74, 60, 100, 24, 94, 96), ("red", "ellipse", 40, 64, 60, 84),
    )), 1.05, 92),
    "scarf": (Shape((
        ("white", "round", 0, 30, 100, 62, 14), ("red", "rect", 24, 30, 40, 62), ("red", "rect", 66, 30, 82, 62),
        ("white", "rect", 10, 52, 34, 100), ("red", "rect", 10, 74, 34, 90),
    )), 1.1, 44),
    "sunglasses": (Shape((
        ("black", "line", 10, 0, 42, 100, 42),
        ("black", "ellipse", 4, 30, 46, 72), ("black", "ellipse", 54, 30, 96, 72),
        ("white", "line", 5, 14, 50, 26, 40), ("white", "line", 5, 64, 50, 76, 40),
    )), 1.1, 50),
}
ACCESSORY_ANCHOR = {"hat": "hat", "crown": "hat", "scarf": "scarf", "sunglasses": "glasses"}
