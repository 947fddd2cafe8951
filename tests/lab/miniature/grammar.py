"""Scenes to English and back: the sentences that the miniature Stable Diffusion is trained on.

``caption`` speaks of a random part of a scene; ``said`` tells what a sentence asks for, so that a picture can be
checked against its prompt. Bare captions, "a photo/picture/painting/drawing of a ...", "with {pose} pose|view",
"in {b} background", "wearing ...", "next to / on top of a ..." and any order of the clauses.
"""
from __future__ import annotations

import random
import re
from dataclasses import dataclass

from .factors import (
    ACCESSORIES,
    ANIMATE,
    BACKGROUNDS,
    CLASSES,
    COLOR_NAMES,
    HUE_NAMES,
    NAMED_PATTERNS,
    POSES,
    PROPS,
    RELATIONS,
    TONES,
    Identity,
    Scene,
)

MEDIA = {
    "photo": ("photo", "close-up photo", "cropped photo", "bright photo", "good photo", "photograph"),
    "drawing": ("drawing", "painting", "illustration", "sketch"),
    None: ("picture", "rendering", "depiction", "rendition", "image"),
}
_ARTICLES = ("a", "the", "my", "one")
PLACES = {
    "beach": ("on the beach", "on a beach"),
    "snow": ("in the snow",),
    "jungle": ("in the jungle", "in a jungle"),
    "city": ("in the city", "in a city"),
    "moon": ("on the moon",),
    "desert": ("in the desert", "in a desert"),
    "night": ("at night", "in the night"),
    "carpet": ("on a red carpet", "on the red carpet"),
    "ocean": ("in the ocean", "under the ocean"),
    "meadow": ("in a meadow", "in the meadow"),
    "volcano": ("on a volcano", "near a volcano"),
    "kitchen": ("in the kitchen", "in a kitchen"),
}
WORN = {"hat": "a hat", "crown": "a crown", "scarf": "a scarf", "sunglasses": "sunglasses"}
POSE_ADJECTIVES = {"lying": "lying", "jumping": "jumping", "upside down": "upside down", "standing": "standing"}


@dataclass(frozen=True)
class Said:
    """The factors a sentence states; None (or False) where it is silent. ``style`` follows from the medium; of colours
    only the basic ones are told."""

    kind: str | None = None
    pattern: str | None = None
    first: str | None = None
    second_color: str | None = None
    pose: str | None = None
    accessory: str | None = None
    background: str | None = None
    style: str | None = None
    relation: str | None = None
    second_kind: str | None = None


def article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" and not noun.startswith("one") else f"a {noun}"


def identity_words(identity: Identity) -> str:
    """"red" or "red and dark teal striped"; raises ValueError for an identity that no caption can name."""
    if not identity.named:
        raise ValueError(f"{identity} has no name")
    if identity.pattern == "plain":
        return str(identity.first.words)
    return f"{identity.first.words} and {identity.second.words} {identity.pattern}"


def _noun(identity: Identity, rng: random.Random, looks: float) -> str:
    if identity.named and rng.random() < looks:
        return f"{identity_words(identity)} {identity.kind}"
    return identity.kind


def _pose_clause(pose: str, kind: str, rng: random.Random) -> str:
    if rng.random() < 0.4:
        return f"with {pose} {'pose' if kind in ANIMATE else 'view'}"
    return pose


def _place_clause(background: str, rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.2:
        return f"in {background} background"
    if draw < 0.3:
        return f"with {article(background)} in the background"
    return rng.choice(PLACES[background])


def _second_noun(scene: Scene, rng: random.Random) -> str:
    assert scene.second is not None
    other = scene.second.identity
    return article(_noun(other, rng, 0.5) if other else scene.second.kind)


def _clauses(scene: Scene, rng: random.Random, pose: float) -> tuple[list[str], str | None]:
    """What is worn and how it stands (``pose``: see ``caption``), in any order; and the second object, which ends its
    noun phrase."""
    clauses = []
    if rng.random() < pose * (0.8 if scene.pose != "standing" else 0.3):
        clauses.append(_pose_clause(scene.pose, scene.identity.kind, rng))
    if scene.accessory != "none" and rng.random() < 0.85:
        clauses.append(f"wearing {WORN[scene.accessory]}")
    rng.shuffle(clauses)
    second = None
    if scene.second is not None and rng.random() < 0.85:
        relation = scene.second.relation
        joined = relation == "next to" and not clauses and rng.random() < 0.35
        second = f"{'and' if joined else relation} {_second_noun(scene, rng)}"
    return clauses, second


def caption(scene: Scene, rng: random.Random, noun: str | None = None, looks: float = 0.6, pose: float = 1.0) -> str:
    """A sentence about ``scene``. ``noun`` replaces the subject's words (a placeholder); ``looks``: how often the
    identity of a nameable subject is said; ``pose``: by what its pose's usual share is multiplied (0: never said)."""
    words = noun or _noun(scene.identity, rng, looks)
    pose_said = noun is None and scene.pose != "standing" and rng.random() < 0.2 * pose
    if pose_said:
        words = f"{POSE_ADJECTIVES[scene.pose]} {words}"
    clauses, second = _clauses(scene, rng, 0.0 if pose_said else pose)
    place = [_place_clause(scene.background, rng)] if rng.random() < 0.85 else []
    if second is not None and rng.random() < 0.5:
        clauses = clauses + place + [second]
    else:
        clauses = clauses + ([second] if second else []) + place
        if second is None:
            rng.shuffle(clauses)
    medium = rng.random()
    if medium < 0.35:
        subject = article(words) if noun is None or rng.random() < 0.7 else words
    else:
        style = scene.style if rng.random() < 0.75 else None
        kind = rng.choice(MEDIA[style][:1] if rng.random() < 0.6 and style == "photo" else MEDIA[style])
        owner = rng.choice(_ARTICLES) if rng.random() < 0.3 else None
        opening = article(kind) if rng.random() < 0.85 else kind
        subject = f"{opening} of {owner + ' ' + words if owner else article(words)}"
    return " ".join([subject, *clauses])


def _one(options: dict[str, str] | tuple[str, ...], text: str) -> str | None:
    for option in sorted(options, key=len, reverse=True):
        if re.search(rf"\b{re.escape(option)}\b", text):
            return option
    return None


def _split_second(text: str) -> tuple[str, str | None, str]:
    """(text without the second object, relation, words of the second object)."""
    nouns = "|".join(CLASSES + PROPS)
    looks = "(?:(?:" + "|".join(TONES[1:] + HUE_NAMES + NAMED_PATTERNS) + r"|and)\s+)*"
    match = re.search(rf"\b(next to|on top of|and) (an? {looks}(?:{nouns}))\b", text)
    if match is None:
        return text, None, ""
    relation = "next to" if match[1] == "and" else match[1]
    return text[: match.start()] + text[match.end():], relation, match[2]


def said(text: str) -> Said:
    """What a sentence of this grammar (a placeholder instead of the class word is fine) asks for."""
    rest, relation, second = _split_second(re.sub(r"<[^>]*>", "placeholder", text.lower()))
    background = _background(rest)
    medium = re.match(rf"(?:an? )?({'|'.join(word for words in MEDIA.values() for word in words)}) of ", rest)
    if medium:
        rest = rest[medium.end():]
    for clause in (option for options in PLACES.values() for option in options):
        rest = re.sub(rf"\b{clause}\b", "", rest)
    colors = re.findall(rf"\b((?:(?:{'|'.join(TONES[1:])}) )?(?:{'|'.join(HUE_NAMES)}))\b", rest)
    basic = [color if color in COLOR_NAMES else None for color in (*colors, None, None)]
    pattern = _one(NAMED_PATTERNS[1:], rest)
    return Said(
        kind=_one(CLASSES, rest),
        pattern=pattern or ("plain" if colors else None),
        first=basic[0],
        second_color=basic[1],
        pose=_one(POSES, rest),
        accessory=_one(ACCESSORIES[1:], rest) if "wearing" in rest else None,
        background=background,
        style=_style(medium[1]) if medium else None,
        relation=relation,
        second_kind=_one(CLASSES + PROPS, second) if second else None,
    )


def _background(text: str) -> str | None:
    for background in BACKGROUNDS:
        phrases = (*PLACES[background], f"in {background} background", f"with {article(background)} in the background")
        if any(re.search(rf"\b{phrase}\b", text) for phrase in phrases):
            return background
    return None


def _style(medium: str) -> str | None:
    return next(style for style, words in MEDIA.items() if medium in words)


def every_word() -> str:
    """One text with every word the grammar can say (for the tokenizer)."""
    media = [word for words in MEDIA.values() for word in words]
    places = [phrase for phrases in PLACES.values() for phrase in phrases]
    extra = ["an", *_ARTICLES, "of", "with", "in", "background", "pose", "view", "wearing", "and", *WORN.values()]
    return " ".join([*CLASSES, *PROPS, *TONES[1:], *HUE_NAMES, *NAMED_PATTERNS, *POSES, *BACKGROUNDS, *RELATIONS,
                     *media,
                     *places, *extra])
