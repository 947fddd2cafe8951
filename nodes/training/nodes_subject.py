"""Nodes that bring pictures in."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import comfy.utils
from comfy_api.latest import io

from ..inputs import advanced, seed_input, size_input
from ..notice import notice
from ..text.concept import Concept
from ..text.embedding_versions import embedding_versions
from ..types import ConceptType, SubjectType
from .augment import Augmentation, Fit, Preparation
from .batch import Subject
from .images import Source, prepare, sources_from_tensors, sources_of, with_captions
from .picture_check import NOTES, findings, looks_of_loaded
from .picture_files import FolderContents, folder_choices, folder_contents, folder_fingerprint, some_of

MOST_CHECKED, SHOWN_FINDINGS = 50, 4


class PersonalizeSubject(io.ComfyNode):
    """Pictures of a subject with its concept: one link of the chain of subjects."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeSubject", display_name="Subject", category="personalize/training", is_input_list=True,
            description="Pictures of one subject, made one size, for Train. Drop 4 or 5 pictures on the node, choose a "
                        "folder of ComfyUI's input folder, or connect images.",
            search_aliases=["dataset", "training images", "load images from a folder", "image folder", "pictures",
                            "photos", "character", "person", "face", "style", "captions", "instance images"],
            inputs=[*_picture_inputs(), *_preparation_inputs(), *_optional_inputs()],
            outputs=[
                SubjectType.Output(display_name="subject",
                                   tooltip="The subject with its pictures, after those of the chain; for Train."),
                io.Image.Output(display_name="images",
                                tooltip="What is trained on, size × size, 0…1: every variant of every picture, or as "
                                        "many of each as 64 MB hold."),
                io.Mask.Output(display_name="masks",
                               tooltip="Masks of these pictures, 1 on the subject; all 1 where there is none.")])

    @classmethod
    def validate_inputs(cls, folder) -> bool:
        """Takes the check of `folder` from ComfyUI, whose list of folders may be older than the newest upload."""
        return True

    @classmethod
    def fingerprint_inputs(cls, folder, picture_files=("",), captions=(), **_) -> str:
        """Changes when a picture or caption file does, or an embedding file that a caption names."""
        try:
            return f"{folder_fingerprint(folder[0] or '', picture_files[0] or '')}\n{embedding_versions(captions)}"
        except ValueError as error:
            return str(error)

    @classmethod
    def execute(cls, concept, folder, size, fit, augmentation, variants, seed, images=(), masks=(),
                picture_files=("",), captions=(), previous=()) -> io.NodeOutput:
        """All inputs are lists, as `is_input_list` makes them: widgets of one value, wires of one or many."""
        subject_concept = _single(concept)
        how = Preparation(size[0], fit[0], augmentation[0], variants[0], seed[0])
        contents = folder_contents(folder[0] or "", picture_files[0] or "")
        sources = _sources(contents, how.enough, images, masks)
        sources = with_captions(sources, captions, subject_concept.placeholder)
        bar = comfy.utils.ProgressBar(len(sources))
        ready = prepare(sources, how, progress=lambda: bar.update(1))
        _say(contents, ready.remarks, _findings(sources, how) if images else ())
        chain = tuple(subject for link in previous for subject in link)
        return io.NodeOutput((*chain, Subject(subject_concept, ready.pictures)), ready.pixels, ready.masks)


def _picture_inputs() -> list:
    return [
        ConceptType.Input("concept", tooltip="Name and class word of what the pictures show, from Concept."),
        io.Combo.Input(
            "folder", options=folder_choices(), default="",
            tooltip="Folder inside ComfyUI's input folder with the pictures. Pictures dropped on the node are uploaded "
                    "to it; if it is empty a new folder named after the subject is made."),
    ]


def _preparation_inputs() -> list:
    return [
        size_input(
            512,
            "Side of the square pictures in pixels, a multiple of the model's latent pixel, mostly 8. 512 for "
                    "SD1.x and SD2.x base (the paper's value), 768 for SD2.x with v-prediction, 1024 for SDXL."),
        io.Combo.Input(
            "fit", options=list(get_args(Fit)), default="crop", advanced=True,
            tooltip="What happens to a picture that is not square: crop to its middle, pad with grey, or squash, which "
                    "distorts. With the augmentation 'as released' the crop lies at a random place."),
        io.Combo.Input(
            "augmentation", options=list(get_args(Augmentation)), default="as released", advanced=True,
            tooltip="none: the picture as it is. flip: also mirrored; not for subjects with writing. as released: as "
                    "CoRe's authors do, turned by -45…45° 3 times of 4 (black corners), mirrored once in 4, cropped at "
                    "random. zoom: as Custom Diffusion, 2 times of 3 smaller on grey, else closer, mirrored once in 2; "
                    "the prompt says so, and grey counts nothing."),
        io.Int.Input(
            "variants", default=16, min=1, max=256, advanced=True,
            tooltip="Versions of each picture that 'as released' and 'zoom' draw, 1…256; the authors draw anew at "
                    "every step. Each is made and encoded once, before the first step, and kept as a latent."),
        *advanced(seed_input("Start of what 'as released' and 'zoom' draw: the same seed gives the same versions.")),
    ]


def _optional_inputs() -> list:
    return [
        io.Image.Input(
            "images", optional=True,
            tooltip="More pictures, after those of the folder: a batch, or a list of different sizes; values 0…1."),
        io.Mask.Input(
            "masks", optional=True,
            tooltip="One mask for each picture at images, of its size, 1 on the subject. Files with transparent parts "
                    "bring their own: what is opaque is the subject."),
        io.String.Input(
            "picture_files", optional=True, default="", multiline=True,
            tooltip="File names in the folder, one a line, to use only these; empty for all. The node keeps its choice "
                    "of thumbnails here."),
        io.String.Input(
            "captions", optional=True, default="", multiline=True, advanced=True,
            tooltip="One line for each picture, in order, holding the placeholder or {}; an empty line for none. If "
                    "all is empty, .txt or .caption files beside the pictures are read; [filewords] means their text, "
                    "and one line with it counts for all. Pictures without a caption are trained with the prompts of "
                    "the recipe."),
        SubjectType.Input(
            "previous", optional=True,
            tooltip="Another Subject, to learn several at once or to add pictures of the same one."),
    ]


def _single(concept: Sequence[tuple[Concept, ...]]) -> Concept:
    found = [one for chain in concept for one in chain]
    if len(found) != 1:
        raise ValueError(f"The input concept brings {len(found)} concepts but a Subject shows one; connect one Concept "
                         "to each Subject and chain the Subjects by previous.")
    return found[0]


def _sources(contents: FolderContents, enough: int, images: Sequence[Any], masks: Sequence[Any]) -> list[Source]:
    files = sources_of(contents, enough)
    sources = files + sources_from_tensors(images, masks, first_number=len(files) + 1)
    if not sources:
        raise ValueError("The subject has no pictures; drop 4 or 5 on the node, choose a folder, or connect images.")
    return sources


def _findings(sources: Sequence[Source], how: Preparation) -> list[str]:
    """What may spoil pictures that the tray cannot show, as they come by a wire."""
    looks = looks_of_loaded(((source.name, source.load()) for source in sources[:MOST_CHECKED]), how.size)
    found = findings(looks, how.size, how.fit, how.augmentation == "as released")
    sentences = [one.sentence for one in found if one.code not in NOTES]
    more = len(sentences) - SHOWN_FINDINGS
    return sentences[:SHOWN_FINDINGS] + ([f"{more} more remarks."] if more > 0 else [])


def _say(contents: FolderContents, remarks: Sequence[str], found: Sequence[str]) -> None:
    sentences = [contents.left_out_sentence(), f"Note: {some_of(remarks)}." if remarks else "", *found]
    if any(sentences):
        notice(" ".join(filter(None, sentences)))


NODES: list[type] = [PersonalizeSubject]
