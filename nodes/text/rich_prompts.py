"""Thousands of prompts put together from phrases: contexts in which a subject was never seen."""
from __future__ import annotations

import random
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path

from .prompts import PromptSet, join_sets

_FOLDER = Path(__file__).parent / "prompt_sets"
_HEADING = re.compile(r"\[(\w+)\]")
_PART = re.compile(r"<(\w+)>")
SUBJECTS = ("animate", "inanimate")
PATTERNS = {  # kind → what prompts of it are put together from
    "background": ("a {} <place>", "a photo of a {} <place> <light>"),
    "action": ("a {} <action> <place>", "a photo of a {} <action> <relation>", "a {} <action> <light>"),
    "outfit": ("a {} <outfit> <place>", "a photo of a {} <outfit> <relation>"),
    "accessory": ("a {} <accessory> <place>", "a photo of a {} <accessory> <light>"),
    "style": ("<style> of a {} <place>", "<style> of a {} <relation>"),
    "colour": ("a {} <relation> <light>", "a photo of a {} <place> <light>"),
    "viewpoint": ("<viewpoint> of a {} <place>", "<viewpoint> of a {} <relation>"),
    "relation": ("a {} <relation> <place>", "a photo of a {} <relation>"),
    "companions": ("a {} and <companion> <place>", "a photo of a {} and <companion> <relation>"),
}
MEANINGS = {
    "background": "places and surroundings", "action": "what it does", "outfit": "what it wears",
    "accessory": "what it carries, or what is on it", "style": "paintings, sculptures and other media",
    "colour": "light, weather and time of day", "viewpoint": "from where and how near it is seen",
    "relation": "things that it stands beside",
    "companions": "another person, animal or thing that is in the picture too",
}
DRAWS = 50  # without a new prompt, until a kind is taken for used up


def rich_prompts(subject: str, kinds: Collection[str], count: int, seed: int = 0) -> PromptSet:
    """`count` different prompts, as many of each kind as of another, or all that there are; the same for a seed.

    subject: one of SUBJECTS; kinds of which it has no phrases are left out.
    """
    phrases = phrases_of(subject)
    patterns = {kind: [p for p in PATTERNS[kind] if set(_PART.findall(p)) <= phrases.keys()] for kind in kinds}
    left = [kind for kind, known in patterns.items() if known]
    rng, found = random.Random(f"{subject} {seed}"), dict[str, str]()
    while left and len(found) < count:
        for kind in tuple(left)[:count - len(found)]:
            drawn = (_put_together(rng.choice(patterns[kind]), phrases, rng) for _ in range(DRAWS))
            new = next((prompt for prompt in drawn if prompt not in found), None)
            if new is None:
                left.remove(kind)
            else:
                found[new] = kind
    return join_sets(PromptSet(tuple((kind, prompt) for prompt, kind in found.items())))


def instruction(kinds: Sequence[str], count: int = 200) -> str:
    """What to ask a language model, so that its answer can be read by `parse`."""
    about = "\n".join(f"- {MEANINGS[kind]}" for kind in kinds)
    return (f"Write {count} short English descriptions of pictures of one subject. Write {{}} where the subject "
            "stands, exactly once in each, after \"a\": for example, a {} reading a newspaper under an apple tree. "
            "Write one description a line and nothing else, at most fifteen words each, no two alike. My subject is "
            f"(say here what it is). Leave out what does not suit it. Let as many as possible of these vary:\n{about}")


def kinds_of(subject: str) -> tuple[str, ...]:
    """Kinds of prompts that suit a subject."""
    known = phrases_of(subject).keys()
    return tuple(kind for kind, patterns in PATTERNS.items()
                 if any(set(_PART.findall(pattern)) <= known for pattern in patterns))


@cache
def phrases_of(subject: str) -> Mapping[str, Sequence[str]]:
    """Part of a prompt ("place", "action", …) → phrases for it, those for any subject first."""
    found: dict[str, list[str]] = {}
    for name in ("rich", f"rich_{subject}"):
        part = ""
        for line in (_FOLDER / f"{name}.txt").read_text("utf-8").splitlines():
            if heading := _HEADING.fullmatch(line):
                part = heading[1]
            elif line and not line.startswith("#"):
                found.setdefault(part, []).append(line)
    return found


def _put_together(pattern: str, phrases: Mapping[str, Sequence[str]], rng: random.Random) -> str:
    return _PART.sub(lambda part: rng.choice(phrases[part[1]]), pattern)
