"""The node that brings pictures of a subject's class in."""
from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import comfy.utils
from comfy_api.latest import io

from ..api_prompt import is_link
from ..inputs import advanced, seed_input, weight_input
from ..notice import notice, progress_text
from ..text.concept import Concept
from ..text.embedding_versions import embedding_versions
from ..text.placeholders import Placeholders, filled
from ..types import SubjectType
from .augment import Preparation
from .batch import Prior
from .class_pictures import Artist, Drawing, class_pictures, gone_pictures
from .images import Source, prepare, sources_from_tensors, sources_of_files

FOR_DRAWING = ("model", "clip", "vae", "picture_count", "seed", "sampling_steps", "cfg")


class PersonalizePriorPictures(io.ComfyNode):
    """Pictures of the class beside those of the subject."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizePriorPictures", display_name="Prior Pictures", category="personalize/training",
            is_input_list=True,
            description="Keeps what the model knows of the class while it learns a subject of it: pictures of the "
                        "class are trained beside the subject's (DreamBooth's prior preservation). Connect model, clip "
                        "and vae, and they are drawn by the model itself, once, or bring your own at images. Put it "
                        "between Subject and Train.",
            search_aliases=["prior preservation", "class images", "regularization images", "dreambooth",
                            "overfit", "language drift", "class pictures"],
            inputs=[
                SubjectType.Input("subject", tooltip="From Subject; of a chain, the last subject gets the pictures."),
                io.Image.Input("images", optional=True,
                               tooltip="Pictures of the class: a batch, or a list of different sizes, which are "
                                       "cropped to the size of the subject's. Not connected: the model draws them."),
                io.String.Input("captions", multiline=True, default="a photo of a {}",
                                tooltip="What each picture shows: one line for all, or one line for each, in order. {} "
                                        "becomes the class words of Concept. Pictures that the model draws are drawn "
                                        "with these prompts, in turn."),
                io.Int.Input("per_step", default=1, min=1, max=64,
                             tooltip="How many of them a step sees. DreamBooth: as many as batch_size of Train. Fewer "
                                     "cost less time."),
                weight_input(1.0, "λ, multiplies their diffusion loss. DreamBooth: 1."),
                io.Model.Input("model", optional=True,
                               tooltip="Draws the pictures: the untrained model, as Train gets it. They are kept in "
                                       "output/personalize/class-pictures and found again."),
                io.Clip.Input("clip", optional=True, tooltip="Text encoder of the same checkpoint."),
                io.Vae.Input("vae", optional=True, tooltip="VAE of the same checkpoint."),
                io.Int.Input("picture_count", default=200, min=1, max=10000, optional=True,
                             tooltip="Pictures to draw. DreamBooth: 200. More later go on where fewer ended."),
                *_drawing_inputs(),
            ],
            outputs=[SubjectType.Output(display_name="subject", tooltip="The subject with the pictures; for Train.")])

    @classmethod
    def fingerprint_inputs(cls, captions=(), **_) -> str:
        """Changes when an embedding file that a caption names does, or where drawn pictures are gone."""
        return "\n".join([embedding_versions(captions), *gone_pictures()])

    @classmethod
    def idle_inputs(cls, inputs: Mapping[str, Any], output: int) -> Collection[str]:
        """With pictures connected, what others would be drawn with."""
        return FOR_DRAWING if is_link(inputs.get("images")) else ()

    @classmethod
    def execute(cls, subject, captions, per_step, weight, images=(), model=(), clip=(), vae=(), picture_count=(200,),
                seed=(0,), sampling_steps=(0,), cfg=(0.0,)) -> io.NodeOutput:
        """All inputs are lists, as `is_input_list` makes them."""
        chain = [one for link in subject for one in link]
        last = chain.pop()
        if last.prior is not None:
            raise ValueError(f"{last.concept.placeholder} has prior pictures already; connect all of them to images of "
                             "one Prior Pictures.")
        size = last.pictures[0].size[0]
        if images:
            sources = sources_from_tensors(images, ())
            texts = _captions(captions, len(sources), last.concept)
            sources = [replace(source, caption=text) for source, text in zip(sources, texts, strict=True)]
            if model:
                notice("images is connected, so nothing is drawn; take it off to have the model draw the class.")
        else:
            drawing = Drawing(size, seed[0], sampling_steps[0], cfg[0])
            sources = _drawn(_artist(model, clip, vae), captions, picture_count[0], last.concept, drawing)
        ready = prepare(sources, Preparation(size, "crop", "none", 1, 0))
        return io.NodeOutput((*chain, replace(last, prior=Prior(ready.pictures, per_step[0], weight[0]))))


def _drawing_inputs() -> list:
    inputs = advanced(
        seed_input("Start of the noises from which pictures are drawn."),
        io.Int.Input("sampling_steps", default=0, min=0, max=1000,
                     tooltip="Steps of the sampler for each picture; 0: as suits the model, mostly 20."),
        io.Float.Input("cfg", default=0.0, min=0.0, max=100.0, step=0.1,
                       tooltip="How strongly pictures follow the prompt (cfg); 1: no guidance, 0: as suits the model, "
                               "7 for SD1.x, SD2.x and SDXL."))
    for each in inputs:
        each.optional = True
    return inputs


def _artist(model: Sequence[Any], clip: Sequence[Any], vae: Sequence[Any]) -> Artist:
    given = {"model": model, "clip": clip, "vae": vae}
    missing = [name for name, value in given.items() if not value]
    if missing:
        raise ValueError("Prior Pictures has no pictures: connect images, or model, clip and vae to have them drawn by "
                         f"the model ({' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing).")
    return Artist(model[0], clip[0], vae[0])


def _drawn(artist: Artist, captions: Sequence[Any], count: int, concept: Concept, how: Drawing) -> list[Source]:
    """Sources of the pictures, after those that are missing have been drawn."""
    lines = _class_prompts(captions, concept)
    if not 0 < len(lines) <= count:
        raise ValueError(f"There are {len(lines)} captions for {count} pictures to draw; write at least one line, "
                         "and at most one for each.")
    prompts = [lines[i % len(lines)] for i in range(count)]
    bar = comfy.utils.ProgressBar(count)

    def tell(number: int) -> None:
        bar.update_absolute(number)
        progress_text(f"{number} of {count} pictures of the class are there.")

    return sources_of_files(class_pictures(artist, prompts, how, tell), prompts, how.size)


def _captions(texts: Sequence[Any], count: int, concept: Concept) -> list[str]:
    """One prompt a picture. Raises ValueError if their number differs, or as `_class_prompts`."""
    lines = _class_prompts(texts, concept)
    if len(lines) not in (1, count):
        raise ValueError(f"There are {len(lines)} captions for {count} prior pictures; write one line for all, or one "
                         "line for each.")
    return lines * count if len(lines) == 1 else lines


def _class_prompts(texts: Sequence[Any], concept: Concept) -> list[str]:
    """The lines with the class words in them. Raises ValueError if one cannot be the class's."""
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    if any("{}" in line for line in lines) and not concept.class_words.strip():
        raise ValueError(f"Concept {concept.placeholder} has no class words to put in place of {{}}; write what the "
                         "subject is, for example dog, into class_words of Concept, or into captions.")
    named = next((line for line in lines if Placeholders([concept.placeholder]).find(line)), None)
    if named is not None:
        raise ValueError(f"The caption '{named}' names {concept.placeholder}, but prior pictures show others of its "
                         "class; write {} for the class words.")
    return [filled(line, concept.class_words) for line in lines]


NODES: list[type] = [PersonalizePriorPictures]
