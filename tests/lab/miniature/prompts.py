"""Prompt templates of the miniature world, with one slot ``{}`` for a subject.

``regularization_prompts`` is what CoRe's prompt set is made of, by kind; ``evaluation_prompts`` is what methods are
compared on. No sentence is in both: an evaluation prompt always joins two factors, a regularization prompt names one.
"""
from __future__ import annotations

from itertools import product

from .factors import ANIMATE, POSES, PROPS
from .grammar import PLACES, WORN, article

NEUTRAL = ("a photo of a {}", "a picture of a {}", "a drawing of a {}", "a painting of a {}", "a {}")
NEW_POSES = POSES[1:]
NEW_COLORS = ("red", "yellow", "green", "blue")


def _pose(pose: str, kind: str) -> str:
    return f"with {pose} {'pose' if kind in ANIMATE else 'view'}"


def regularization_prompts(kind: str) -> dict[str, tuple[str, ...]]:
    """background, action, outfit, object, style -> templates that name one factor each, for a class of the world."""
    media = ("a {}", "a photo of a {}", "a drawing of a {}")
    return {
        "background": tuple(f"{medium} {phrases[0]}" for medium, phrases in product(media, PLACES.values())),
        "action": tuple(f"{medium} {words}" for medium in media for pose in POSES
                        for words in (pose, _pose(pose, kind))),
        "outfit": tuple(f"{medium} wearing {worn}" for medium, worn in product(media, WORN.values())),
        "object": tuple(f"{medium} {relation} {article(prop)}"
                        for medium, prop in product(media, PROPS) for relation in ("next to", "on top of")),
        "style": NEUTRAL,
    }


def evaluation_prompts(kind: str) -> dict[str, tuple[str, ...]]:
    """place, costume, object, style, attribute -> templates that join two factors each and ask for a new one of these
    above all, for a class of the world: twenty-four together.

    An attribute is a colour that the subject does not have.
    """
    places = [phrases[0] for phrases in PLACES.values()]
    worn, props = list(WORN.values()), list(PROPS)
    return {
        "place": tuple(f"a photo of a {{}} {NEW_POSES[i % 3]} {place}" for i, place in enumerate(places[:6])),
        "costume": tuple(f"a drawing of a {{}} wearing {worn[i % 4]} {place}" for i, place in enumerate(places[6:])),
        "object": tuple(f"a photo of a {{}} next to {article(prop)} {places[3 * i]}" for i, prop in enumerate(props)),
        "style": tuple(f"a painting of a {{}} {_pose(pose, kind)} on top of {article(props[i])}"
                       for i, pose in enumerate(POSES)),
        "attribute": tuple(f"a photo of a {color} {{}} {places[3 * i + 1]}" for i, color in enumerate(NEW_COLORS)),
    }
