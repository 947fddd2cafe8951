"""What a picture of the miniature world is made of: the vocabulary, one scene, how scenes are drawn by lot.

A scene is a handful of discrete factors plus one integer seed for everything that no caption speaks of (placement,
size, decorations).  Two kinds of combination are held out by a fixed hash and never drawn for training: identities
(class, pattern, two colours) and contexts (class, pose, background).
"""
from __future__ import annotations

import random
import zlib
from dataclasses import dataclass, replace

ANIMATE = ("dog", "cat", "bird", "fish", "rabbit", "turtle")
INANIMATE = ("car", "teapot", "robot", "boat", "mushroom", "rocket")
CLASSES = ANIMATE + INANIMATE

NAMED_PATTERNS = ("plain", "striped", "banded", "spotted", "checkered", "two-tone")
UNNAMED_PATTERNS = ("diagonal", "rings")
PATTERNS = NAMED_PATTERNS + UNNAMED_PATTERNS

# Sixteen hues (degrees / 360, saturation, value) with a word each; the even ones, when vivid, are the basic colours
# that prompts are checked for. Then sixteen without a word, each between two of the first: only novel subjects have
# them.
HUE_NAMES = ("red", "scarlet", "orange", "gold", "yellow", "lime", "green", "teal", "cyan", "azure", "blue", "indigo",
             "purple", "magenta", "pink", "rose")
COLOR_NAMES = HUE_NAMES[::2]
_SPOKEN = (
    (0.000, 0.86, 0.86), (0.045, 0.84, 0.92), (0.082, 0.92, 0.98), (0.115, 0.90, 0.98),
    (0.150, 0.85, 0.98), (0.225, 0.80, 0.86), (0.345, 0.78, 0.66), (0.430, 0.78, 0.74),
    (0.500, 0.78, 0.88), (0.560, 0.76, 0.88), (0.620, 0.82, 0.84), (0.700, 0.70, 0.76),
    (0.770, 0.68, 0.66), (0.840, 0.66, 0.76), (0.910, 0.46, 0.98), (0.960, 0.62, 0.92),
)


def _between(one: tuple[float, float, float], other: tuple[float, float, float]) -> tuple[float, float, float]:
    """Half way round the circle of hues from one to the next."""
    turn = (other[0] - one[0]) % 1.0
    return (one[0] + turn / 2) % 1.0, (one[1] + other[1]) / 2, (one[2] + other[2]) / 2


HUES = _SPOKEN + tuple(map(_between, _SPOKEN, _SPOKEN[1:] + _SPOKEN[:1]))
TONES = ("vivid", "dark", "pale")

POSES = ("standing", "lying", "jumping", "upside down")
ACCESSORIES = ("none", "hat", "crown", "scarf", "sunglasses")
STYLES = ("photo", "drawing")
BACKGROUNDS = (
    "beach", "snow", "jungle", "city", "moon", "desert", "night", "carpet", "ocean", "meadow", "volcano", "kitchen",
)
PROPS = ("ball", "box", "cake", "drum")
RELATIONS = ("next to", "on top of")

IDENTITIES_HELD_OUT = 10
CONTEXTS_HELD_OUT = 12


@dataclass(frozen=True)
class Color:
    """A colour: ``hue`` indexes HUES, ``tone`` indexes TONES. The 48 of the spoken hues have words."""

    hue: int
    tone: int = 0

    @property
    def name(self) -> str | None:
        """The word of a basic colour: a vivid one of an even hue."""
        return self.words if self.words in COLOR_NAMES else None

    @property
    def words(self) -> str | None:
        """What a caption calls it, as "teal" or "dark teal"."""
        if self.hue >= len(HUE_NAMES):
            return None
        return HUE_NAMES[self.hue] if self.tone == 0 else f"{TONES[self.tone]} {HUE_NAMES[self.hue]}"


SPOKEN_COLORS = tuple(Color(hue, tone) for tone in range(len(TONES)) for hue in range(len(HUE_NAMES)))


@dataclass(frozen=True)
class Identity:
    """What makes a subject this subject and no other. ``second`` is unused by the plain pattern."""

    kind: str
    pattern: str
    first: Color
    second: Color

    @property
    def colors(self) -> frozenset[Color]:
        """Those that are seen."""
        return frozenset((self.first,) if self.pattern == "plain" else (self.first, self.second))

    @property
    def basic(self) -> bool:
        """True when basic colours and the pattern's name say all of it."""
        return self.pattern in NAMED_PATTERNS and None not in (self.first.name, self.second.name)

    @property
    def named(self) -> bool:
        """True when a caption can say it."""
        return self.pattern in NAMED_PATTERNS and None not in (self.first.words, self.second.words)

    @property
    def held_out(self) -> bool:
        """True when training never draws it: a tenth of what captions know, and all in a colour without words."""
        if None in (self.first.words, self.second.words):
            return True
        second = () if self.pattern == "plain" else (self.second.hue, self.second.tone)
        key = (self.kind, self.pattern, self.first.hue, self.first.tone, *second)
        return _hash("identity", *key) % IDENTITIES_HELD_OUT == 0


@dataclass(frozen=True)
class Second:
    """A second object: a prop (``identity`` None) or another subject."""

    relation: str
    kind: str
    identity: Identity | None = None


@dataclass(frozen=True)
class Scene:
    """Everything a caption may speak of, and ``seed`` for everything else."""

    identity: Identity
    pose: str
    accessory: str
    background: str
    style: str
    second: Second | None
    seed: int

    @property
    def held_out(self) -> bool:
        """True when training never sees this identity or this class, pose and background together."""
        context = _hash("context", self.identity.kind, self.pose, self.background) % CONTEXTS_HELD_OUT == 0
        second = self.second is not None and self.second.identity is not None and self.second.identity.held_out
        return context or self.identity.held_out or second


def _hash(*parts: object) -> int:
    return zlib.crc32("|".join(map(str, parts)).encode())


def color_rgb(color: Color, shift: tuple[float, float] = (0.0, 0.0)) -> tuple[int, int, int]:
    """8-bit RGB of a colour; ``shift`` moves hue (turns) and value (0..1) a little."""
    import colorsys

    hue, saturation, value = HUES[color.hue]
    if TONES[color.tone] == "dark":
        value *= 0.52
    if TONES[color.tone] == "pale":
        saturation, value = saturation * 0.38, 0.5 + 0.5 * value
    red, green, blue = colorsys.hsv_to_rgb((hue + shift[0]) % 1.0, saturation, min(1.0, value + shift[1]))
    return round(255 * red), round(255 * green), round(255 * blue)


def contrast(first: Color, second: Color) -> float:
    """Largest difference of two colours over the RGB channels, 0..255."""
    return max(abs(a - b) for a, b in zip(color_rgb(first), color_rgb(second)))


def sample_color(rng: random.Random, basic: bool) -> Color:
    """A basic colour, or any that has words."""
    if basic:
        return Color(2 * rng.randrange(len(COLOR_NAMES)))
    return Color(rng.randrange(len(HUE_NAMES)), rng.randrange(len(TONES)))


def sample_identity(rng: random.Random, kind: str | None = None, basic: bool | None = None) -> Identity:
    """A random identity; ``basic`` None draws one that is not basic three times out of five."""
    kind = kind or rng.choice(CLASSES)
    basic = rng.random() < 0.4 if basic is None else basic
    while True:
        pattern = rng.choice(NAMED_PATTERNS if basic else PATTERNS)
        first, second = sample_color(rng, basic), sample_color(rng, basic)
        identity = Identity(kind, pattern, first, second)
        if contrast(first, second) > 110 and identity.basic == basic:
            return identity


def _sample_second(rng: random.Random, kind: str) -> Second:
    if rng.random() < 0.6:
        return Second(rng.choice(RELATIONS), rng.choice(PROPS))
    other = rng.choice([name for name in CLASSES if name != kind])
    return Second("next to", other, sample_identity(rng, other, basic=True))


def _sample_any(rng: random.Random, identity: Identity | None) -> Scene:
    identity = identity or sample_identity(rng)
    return Scene(
        identity=identity,
        pose=rng.choice(POSES) if rng.random() < 0.65 else "standing",
        accessory=rng.choice(ACCESSORIES[1:]) if rng.random() < 0.35 else "none",
        background=rng.choice(BACKGROUNDS),
        style=rng.choice(STYLES),
        second=_sample_second(rng, identity.kind) if rng.random() < 0.25 else None,
        seed=rng.randrange(2**31),
    )


def sample_scene(rng: random.Random, split: str = "train", identity: Identity | None = None) -> Scene:
    """A random scene. ``split``: "train" (nothing held out), "held_out" (only held-out) or "all"."""
    if split not in ("train", "held_out", "all"):
        raise ValueError(f'split is {split!r}; use "train", "held_out" or "all".')
    while True:
        scene = _sample_any(rng, identity)
        if split == "all" or scene.held_out == (split == "held_out"):
            return scene


def with_factors(scene: Scene, **changes: object) -> Scene:
    """The same scene with some factors changed (same seed: same placement and decorations)."""
    return replace(scene, **changes)
