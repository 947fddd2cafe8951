"""Prompt templates of the miniature world, with one slot ``{}`` for a subject.

``regularization_prompts`` is what CoRe's prompt set is made of, by kind; methods are compared on
``evaluation_prompts``, or on ``hard_prompts``, which state more at once. What the former say (a place, a pose,
something worn or a second object) the latter two never ask for: half of the world's words each.
"""
from __future__ import annotations

from itertools import product

from .factors import ANIMATE, BACKGROUNDS, POSES, PROPS, RELATIONS
from .grammar import PLACES, WORN, article

NEUTRAL = ("a photo of a {}", "a picture of a {}", "a drawing of a {}", "a painting of a {}", "a {}")
NEW_COLORS = ("red", "yellow", "green", "blue")

KNOWN_PLACES, NEW_PLACES = BACKGROUNDS[::2], BACKGROUNDS[1::2]
KNOWN_POSES, NEW_POSES = POSES[:2], POSES[2:]
KNOWN_WORN, NEW_WORN = ("hat", "scarf"), ("crown", "sunglasses")
KNOWN_PROPS, NEW_PROPS = PROPS[:2], PROPS[2:]


def _pose(pose: str, kind: str) -> str:
    return f"with {pose} {'pose' if kind in ANIMATE else 'view'}"


def regularization_prompts(kind: str) -> dict[str, tuple[str, ...]]:
    """background, action, outfit, object, style -> templates that name one factor each, for a class of the world."""
    media = ("a {}", "a photo of a {}", "a drawing of a {}")
    return {
        "background": tuple(f"{medium} {phrase}" for medium in media for place in KNOWN_PLACES
                            for phrase in PLACES[place]),
        "action": tuple(f"{medium} {words}" for medium in media for pose in KNOWN_POSES
                        for words in (pose, _pose(pose, kind))),
        "outfit": tuple(f"{medium} wearing {WORN[worn]}" for medium, worn in product(media, KNOWN_WORN)),
        "object": tuple(f"{medium} {relation} {article(prop)}" for medium, prop in product(media, KNOWN_PROPS)
                        for relation in RELATIONS),
        "style": NEUTRAL,
    }


def rich_prompts(kind: str) -> tuple[str, ...]:
    """Templates that join two to four of the factors that `regularization_prompts` name, for a class of the world."""
    media = ("a {}", "a photo of a {}", "a drawing of a {}")
    poses = [words for pose in KNOWN_POSES for words in (pose, _pose(pose, kind))]
    worn = [f"wearing {WORN[worn]}" for worn in KNOWN_WORN]
    props = [f"{relation} {article(prop)}" for prop in KNOWN_PROPS for relation in RELATIONS]
    places = [phrase for place in KNOWN_PLACES for phrase in PLACES[place]]
    clauses = product(("", *poses), ("", *worn), ("", *props), ("", *places))
    joined = [[clause for clause in chosen if clause] for chosen in clauses]
    return tuple(" ".join([medium, *chosen]) for medium in media for chosen in joined if len(chosen) > 1)


def evaluation_prompts(kind: str) -> dict[str, tuple[str, ...]]:
    """place, costume, object, style, attribute -> templates that join two factors each and ask for a new one of these
    above all, for a class of the world: twenty-four together.

    An attribute is a colour that the subject does not have.
    """
    places, worn, props, poses = _places(), _worn(), _props(), NEW_POSES
    return {
        "place": tuple(f"a photo of a {{}} {poses[i % 2]} {place}" for i, place in enumerate(places)),
        "costume": tuple(f"a drawing of a {{}} wearing {worn[i % 2]} {place}" for i, place in enumerate(places)),
        "object": tuple(f"a photo of a {{}} next to {props[i % 2]} {places[i]}" for i in range(4)),
        "style": tuple(f"a painting of a {{}} {_pose(pose, kind)} on top of {prop}"
                       for pose, prop in product(poses, props)),
        "attribute": tuple(f"a photo of a {color} {{}} {places[i + 2]}" for i, color in enumerate(NEW_COLORS)),
    }


def hard_prompts(kind: str) -> dict[str, tuple[str, ...]]:
    """three, four, five, six -> six templates each that ask for so many factors at once, the class among them."""
    places, worn, props, poses = _places(), _worn(), _props(), NEW_POSES
    numbered = list(enumerate(places))
    return {
        "three": tuple(f"a {{}} {poses[i % 2]} {place}" for i, place in numbered),
        "four": tuple(f"a photo of a {{}} wearing {worn[i % 2]} {place}" for i, place in numbered),
        "five": tuple(f"a drawing of a {{}} {poses[i % 2]} wearing {worn[i // 2 % 2]} {place}"
                      for i, place in numbered),
        "six": tuple(f"a photo of a {{}} {poses[i // 2 % 2]} next to {props[i % 2]} {place}" for i, place in numbered),
    }


def _places() -> list[str]:
    return [PLACES[place][0] for place in NEW_PLACES]


def _worn() -> list[str]:
    return [WORN[worn] for worn in NEW_WORN]


def _props() -> list[str]:
    return [article(prop) for prop in NEW_PROPS]
