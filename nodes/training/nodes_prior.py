"""The node that brings pictures of a subject's class in."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..inputs import weight_input
from ..text.concept import Concept
from ..text.embedding_versions import embedding_versions
from ..text.placeholders import Placeholders, filled
from ..types import SubjectType
from .augment import Preparation
from .batch import Prior
from .images import prepare, sources_from_tensors


class PersonalizePriorPictures(io.ComfyNode):
    """Pictures of the class beside those of the subject."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizePriorPictures", display_name="Prior Pictures", category="personalize/training",
            is_input_list=True,
            description="Keeps what the model knows of the class while it learns a subject of it: pictures of the "
                        "class, best drawn by the model itself, are trained beside the subject's (DreamBooth's prior "
                        "preservation). Put it between Subject and Train.",
            search_aliases=["prior preservation", "class images", "regularization images", "dreambooth",
                            "overfit", "language drift"],
            inputs=[
                SubjectType.Input("subject", tooltip="From Subject; of a chain, the last subject gets the pictures."),
                io.Image.Input("images", tooltip="Pictures of the class: a batch, or a list of different sizes, which "
                                                 "are cropped to the size of the subject's. DreamBooth: 200, drawn by "
                                                 "the untrained model with the prompt below."),
                io.String.Input("captions", multiline=True, default="a photo of a {}",
                                tooltip="What each picture shows: one line for all, or one line for each, in order. {} "
                                        "becomes the class words of Concept."),
                io.Int.Input("per_step", default=1, min=1, max=64,
                             tooltip="How many of them a step sees. DreamBooth: as many as batch_size of Train. Fewer "
                                     "cost less time."),
                weight_input(1.0, "λ, multiplies their diffusion loss. DreamBooth: 1."),
            ],
            outputs=[SubjectType.Output(display_name="subject", tooltip="The subject with the pictures; for Train.")])

    @classmethod
    def fingerprint_inputs(cls, captions=(), **_) -> str:
        """Changes when an embedding file that a caption names does."""
        return embedding_versions(captions)

    @classmethod
    def execute(cls, subject, images, captions, per_step, weight) -> io.NodeOutput:
        """All inputs are lists, as `is_input_list` makes them."""
        chain = [one for link in subject for one in link]
        last = chain.pop()
        if last.prior is not None:
            raise ValueError(f"{last.concept.placeholder} has prior pictures already; connect all of them to images of "
                             "one Prior Pictures.")
        sources = sources_from_tensors(images, ())
        texts = _captions(captions, len(sources), last.concept)
        sources = [replace(source, caption=text) for source, text in zip(sources, texts, strict=True)]
        size = last.pictures[0].size[0]
        ready = prepare(sources, Preparation(size, "crop", "none", 1, 0))
        return io.NodeOutput((*chain, replace(last, prior=Prior(ready.pictures, per_step[0], weight[0]))))


def _captions(texts: Sequence[Any], count: int, concept: Concept) -> list[str]:
    """One prompt a picture. Raises ValueError if their number differs, or one cannot be the class's."""
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    if len(lines) not in (1, count):
        raise ValueError(f"There are {len(lines)} captions for {count} prior pictures; write one line for all, or one "
                         "line for each.")
    if any("{}" in line for line in lines) and not concept.class_words.strip():
        raise ValueError(f"Concept {concept.placeholder} has no class words to put in place of {{}}; write what the "
                         "subject is, for example dog, into class_words of Concept, or into captions.")
    named = next((line for line in lines if Placeholders([concept.placeholder]).find(line)), None)
    if named is not None:
        raise ValueError(f"The caption '{named}' names {concept.placeholder}, but prior pictures show others of its "
                         "class; write {} for the class words.")
    lines = [filled(line, concept.class_words) for line in lines]
    return lines * count if len(lines) == 1 else lines


NODES: list[type] = [PersonalizePriorPictures]
