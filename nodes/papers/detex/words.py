"""The words of a subject's attributes, a pair for each of its pictures, and the prompts that they stand in."""
from __future__ import annotations

from typing import Literal, get_args

from ...text.concept import Concept

Attribute = Literal["pose", "background"]
POSE, BACKGROUND = ATTRIBUTES = get_args(Attribute)


def attribute_word(placeholder: str, attribute: str, number: int | None = None) -> str:
    """The word of picture `number` (from 1): "<my-dog>" → "<my-dog-pose-1>", "sks" → "sks-pose-1"; without it
    "<my-dog-pose>"."""
    bracket = ">" if placeholder.endswith(">") else ""
    ending = "" if number is None else f"-{number}"
    return f"{placeholder.removesuffix('>')}-{attribute}{ending}{bracket}"


def attribute_prompt(concept: Concept, number: int, pose_is: str, background: bool) -> str:
    """"Photo of a [V] class with [P] pose in [B] background" of picture `number` (from 1), or the part before "in"."""
    subject = " ".join(filter(None, (concept.placeholder, concept.class_words)))
    pose, behind = (attribute_word(concept.placeholder, attribute, number) for attribute in ATTRIBUTES)
    return f"Photo of a {with_attributes(subject, pose, pose_is, behind if background else '')}"


def with_attributes(subject: str, pose: str, pose_is: str, background: str) -> str:
    """"[V] class with [P] pose in [B] background"; without an attribute whose word is "".

    pose_is: the word behind [P], "pose" of what lives, "view" of what does not.
    """
    words = [subject, f"with {pose} {pose_is}" if pose else "", f"in {background} background" if background else ""]
    return " ".join(filter(None, words))
