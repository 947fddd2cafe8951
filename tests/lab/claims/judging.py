"""What the oracle makes of a cell's pictures: one value a picture and measure."""
from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from miniature.grammar import said
from miniature.measures import (
    colors_kept,
    identity_kept,
    identity_similarity,
    kept_against_prompt,
    kept_unasked,
    reference_identity,
    text_alignment,
    whole_similarity,
)

from .bounds import SUBJECT
from .store import Verdict
from .task import Task
from .world import World

REVISION = 4  # raised when a measure changes
MEASURES = {
    "text": "share of the prompt's factors, the subject's class among them, that the picture shows",
    "identity": "cosine between the subject and the reference subject",
    "colours": "share of pictures with the subject's own colours",
    "colours_and_pattern": "share of pictures with the subject's own colours and pattern",
    "class": "share of pictures that show the subject's class",
    "pose_bias": "share of pictures in the references' pose among prompts that ask for another one",
    "place_bias": "share of pictures in the references' place among prompts that ask for another one",
    "whole_picture": "cosine between the whole picture and the references with their places",
    "first_pose": "share of pictures in the first reference's pose among prompts that ask for none",
    "first_place": "share of pictures in the first reference's place among prompts that ask for none",
}


LOOKS = ("identity", "colours", "colours_and_pattern", "whole_picture")  # of no prompt that asks for other ones


def judge(world: World, task: Task, pictures: Mapping[int, Tensor]) -> Verdict:
    """Number of the template -> measure -> value; a measure is missing where it does not apply."""
    if not pictures:
        return {}
    reference = reference_identity(world.oracle, task.pictures, task.masks)
    whole = reference_identity(world.oracle, task.pictures, torch.ones_like(task.masks))
    first = task.scenes[0]
    prompts = task.prompts(SUBJECT)
    judged = world.oracle.judge(torch.stack(list(pictures.values())))
    verdict = {}
    for (number, picture), seen in zip(pictures.items(), judged, strict=True):
        values = {
            "text": text_alignment(seen, prompts[number], task.identity.kind),
            "identity": identity_similarity(seen, reference),
            "colours": colors_kept(picture, seen, task.identity),
            "colours_and_pattern": identity_kept(picture, seen, task.identity),
            "class": seen.factors["kind"] == task.identity.kind,
            "pose_bias": kept_against_prompt(seen, prompts[number], "pose", task.shared("pose")),
            "place_bias": kept_against_prompt(seen, prompts[number], "background", task.shared("background")),
            "whole_picture": whole_similarity(world.oracle, picture, whole),
            "first_pose": kept_unasked(seen, prompts[number], "pose", first.pose),
            "first_place": kept_unasked(seen, prompts[number], "background", first.background),
        }
        told = said(prompts[number]).first is not None
        verdict[number] = {name: float(value) for name, value in values.items()
                           if value is not None and not (told and name in LOOKS)}
    return verdict
