"""Novel subjects: identities that no caption can name and no training picture ever showed.

``public_subjects`` is the fixed set, one subject of every class; ``fresh_subjects`` draws a hidden set from any seed.
Every subject comes in three sets of five pictures: ``varied`` (places, poses, styles), ``limited`` (one place and one
pose: the trap in which a method learns the context instead of the subject) and ``accompanied`` (a second object in
every picture).
"""
from __future__ import annotations

import random
from dataclasses import dataclass

from .factors import (
    BACKGROUNDS, CLASSES, POSES, PROPS, RELATIONS, UNNAMED_PATTERNS, Identity, Scene, Second, contrast, sample_color,
)

PICTURES = 5
SETS = ("varied", "limited", "accompanied")
PUBLIC_SEED = "public subjects 1"


@dataclass(frozen=True)
class Subject:
    """A subject and its reference scenes: set name -> five scenes (draw them with renderer.draw)."""

    name: str
    identity: Identity
    sets: dict[str, tuple[Scene, ...]]


def public_subjects() -> tuple[Subject, ...]:
    """The fixed set: one subject a class, the same on every machine."""
    return _subjects(CLASSES, PUBLIC_SEED)


def fresh_subjects(count: int, seed: int) -> tuple[Subject, ...]:
    """``count`` subjects of random classes that depend on ``seed`` alone."""
    rng = random.Random(f"classes {seed}")
    return _subjects([rng.choice(CLASSES) for _ in range(count)], f"fresh subjects {seed}")


def _subjects(kinds: tuple[str, ...] | list[str], seed: str) -> tuple[Subject, ...]:
    rng = random.Random(seed)
    subjects, taken = [], set()
    for number, kind in enumerate(kinds):
        identity = _novel_identity(kind, rng)
        while identity in taken:
            identity = _novel_identity(kind, rng)
        taken.add(identity)
        subjects.append(Subject(f"{number:02d}-{kind}", identity, _sets(identity, rng)))
    return tuple(subjects)


def _novel_identity(kind: str, rng: random.Random) -> Identity:
    """An unnamed pattern in two contrasting colours without a name, from the part of the world held out of training."""
    while True:
        identity = Identity(kind, rng.choice(UNNAMED_PATTERNS), sample_color(rng, False), sample_color(rng, False))
        nameless = identity.first.name is None and identity.second.name is None
        if nameless and identity.held_out and contrast(identity.first, identity.second) > 120:
            return identity


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
