"""Novel subjects: identities that no caption can name and no training picture ever showed.

``public_subjects`` is the fixed set, one subject of every class, on which results are reported; settings are chosen on
``tuning_subjects`` alone; ``fresh_subjects`` draws a set that nobody chose from any seed.
By turns a subject has one colour, which one word may carry, and a pattern in two colours, which is too much for a word.
Every subject comes in three sets of five pictures: ``varied`` (places, poses, styles), ``limited`` (one place and one
pose: the trap in which a method learns the context instead of the subject) and ``accompanied`` (a second object in
every picture).
"""
from __future__ import annotations

import random
from dataclasses import dataclass

from .factors import (
    BACKGROUNDS,
    CLASSES,
    HUE_NAMES,
    HUES,
    POSES,
    PROPS,
    RELATIONS,
    TONES,
    UNNAMED_PATTERNS,
    Color,
    Identity,
    Scene,
    Second,
    contrast,
)

PICTURES = 5
SETS = ("varied", "limited", "accompanied")
PUBLIC_SEED, TUNING_SEED = "public subjects 2", "tuning subjects"


@dataclass(frozen=True)
class Subject:
    """A subject and its reference scenes: set name -> five scenes (draw them with renderer.draw)."""

    name: str
    identity: Identity
    sets: dict[str, tuple[Scene, ...]]


def public_subjects() -> tuple[Subject, ...]:
    """The fixed set: one subject a class, the same on every machine."""
    return _subjects(CLASSES, PUBLIC_SEED)


def tuning_subjects() -> tuple[Subject, ...]:
    """The other fixed set, one subject a class, which no table reports."""
    return _subjects(CLASSES, TUNING_SEED)


def fresh_subjects(count: int, seed: int) -> tuple[Subject, ...]:
    """``count`` subjects of random classes that depend on ``seed`` alone."""
    rng = random.Random(f"classes {seed}")
    return _subjects([rng.choice(CLASSES) for _ in range(count)], f"fresh subjects {seed}")


def _subjects(kinds: tuple[str, ...] | list[str], seed: str) -> tuple[Subject, ...]:
    rng = random.Random(seed)
    subjects, taken = [], set()
    for number, kind in enumerate(kinds):
        draw = _patterned if number % 2 else _plain
        identity = draw(kind, rng)
        while identity in taken:
            identity = draw(kind, rng)
        taken.add(identity)
        subjects.append(Subject(f"{number:02d}-{kind}", identity, _sets(identity, rng)))
    return tuple(subjects)


def _plain(kind: str, rng: random.Random) -> Identity:
    """One colour without a word."""
    color = _wordless(rng)
    return Identity(kind, "plain", color, color)


def _patterned(kind: str, rng: random.Random) -> Identity:
    """An unnamed pattern in two contrasting colours without a word."""
    while True:
        identity = Identity(kind, rng.choice(UNNAMED_PATTERNS), _wordless(rng), _wordless(rng))
        if contrast(identity.first, identity.second) > 120:
            return identity


def _wordless(rng: random.Random) -> Color:
    """A colour between two that captions know, which training never shows."""
    return Color(rng.randrange(len(HUE_NAMES), len(HUES)), rng.randrange(len(TONES)))


def _sets(identity: Identity, rng: random.Random) -> dict[str, tuple[Scene, ...]]:
    def scene(pose: str, background: str, style: str = "photo", accessory: str = "none",
              second: Second | None = None) -> Scene:
        return Scene(identity, pose, accessory, background, style, second, rng.randrange(2**31))

    places = rng.sample(BACKGROUNDS, PICTURES)
    poses = [*rng.sample(POSES, len(POSES)), rng.choice(POSES)]
    styles = ["photo", "photo", "photo", "drawing", "drawing"]
    accessories = ["none", "none", "none", "hat", "scarf"]
    place, pose = rng.choice(BACKGROUNDS), rng.choice(POSES)
    return {
        "varied": tuple(map(scene, poses, places, styles, accessories)),
        "limited": tuple(scene(pose, place) for _ in range(PICTURES)),
        "accompanied": tuple(
            scene(rng.choice(POSES), background, second=Second(rng.choice(RELATIONS), rng.choice(PROPS)))
            for background in rng.sample(BACKGROUNDS, PICTURES)),
    }
