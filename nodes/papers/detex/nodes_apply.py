"""Nodes that use what was learned of poses and backgrounds."""
from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io

from ...model_files import file_names, find_file, validated, versions
from ...text.concept import Concept, check_placeholder
from ...text.embedding_files import find_embedding, prompt_text
from ...text.embedding_versions import embedding_versions
from ...text.prompts import SLOT
from ...types import ConceptType
from .files import FOLDER, Detex, read_about, read_detex
from .seeing import image_features, vision_fingerprint
from .words import ATTRIBUTES, BACKGROUND, POSE, attribute_word, with_attributes

CATEGORY = "personalize/detex"


class PersonalizeDetexEncodePicture(io.ComfyNode):
    """Makes words of the pose and the background of a new picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeDetexEncodePicture", display_name="DETEX Encode Picture", category=CATEGORY,
            description="Makes two words of a picture that was not in the training: one for its pose, one for its "
                        "background. Teach them to the CLIP with Apply Concept and write them in the prompt.",
            search_aliases=["pose", "background", "decoupled", "attribute"],
            inputs=[
                _file_input(),
                io.ClipVision.Input("clip_vision", tooltip="From Load CLIP Vision: the one of the training."),
                io.Image.Input("image", tooltip="One picture, whose pose or background you want."),
                io.String.Input("name", default="new", tooltip="With which the words begin: new gives <new-pose> and "
                                                               "<new-background>.")],
            outputs=[ConceptType.Output(display_name="pose_concept",
                                        tooltip="Its word is <new-pose>; for Apply Concept."),
                     ConceptType.Output(display_name="background_concept",
                                        tooltip="Its word is <new-background>; for Apply Concept.")])

    @classmethod
    def validate_inputs(cls, file) -> bool | str:
        """Takes the check of `file` from ComfyUI, so that a new file can be used at once."""
        return validated(_file, file)

    @classmethod
    def fingerprint_inputs(cls, file=None, **_) -> str:
        """Changes when the file does."""
        return versions(_file, file)

    @classmethod
    def execute(cls, file: str, clip_vision, image, name: str) -> io.NodeOutput:
        """Two concepts."""
        if len(image) != 1:
            raise ValueError(f"image holds {len(image)} pictures, but a word stands for one; take one of them with "
                             "ImageFromBatch.")
        detex = read_detex(_file(file))
        vectors = detex.encode(image_features(clip_vision, image))
        if vision_fingerprint(clip_vision) != detex.vision:
            raise ValueError(f"{detex.source} was trained with another image encoder than this clip_vision; load the "
                             "one of the training.")
        words = {attribute: attribute_word(f"<{name.strip('<> ')}>", attribute) for attribute in ATTRIBUTES}
        for word in words.values():
            check_placeholder(word, "")
        return io.NodeOutput(*((Concept(words[attribute], "", attribute).with_vectors(vectors[attribute]),)
                               for attribute in ATTRIBUTES))


class PersonalizeDetexPrompt(io.ComfyNode):
    """Writes a prompt with the pose and the background of training pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeDetexPrompt", display_name="DETEX Prompt", category=CATEGORY,
            description="Writes the prompt for what Train DETEX has learned: click a training picture to keep its pose "
                        "or its background. For CLIP Text Encode; draw with the LoRA of the same training.",
            search_aliases=["pose", "background", "keep pose", "keep background", "mix"], is_output_node=True,
            inputs=[
                _file_input(),
                io.String.Input("prompt", multiline=True, default="Photo of a {}",
                                tooltip="The prompt; a pair of braces becomes the subject with what is kept."),
                io.Int.Input("pose_of", default=0, min=0, max=1000,
                             tooltip="Number of the picture whose pose is kept; 0: none."),
                io.Int.Input("background_of", default=0, min=0, max=1000,
                             tooltip="Number of the picture whose background is kept; 0: none."),
                io.String.Input("other_subject", default="",
                                tooltip="What takes the place of the learned subject, such as cat. Empty: the learned "
                                        "word and what it is.")],
            outputs=[io.String.Output(display_name="prompt", tooltip="For CLIP Text Encode.")])

    @classmethod
    def validate_inputs(cls, file) -> bool | str:
        """Takes the check of `file` from ComfyUI, so that a new file can be used at once."""
        return validated(_file, file)

    @classmethod
    def fingerprint_inputs(cls, file=None, prompt="", **_) -> str:
        """Changes when the file does, or an embedding file that the prompt names."""
        return versions(_file, file) + embedding_versions(prompt)

    @classmethod
    def execute(cls, file: str, prompt: str, pose_of: int, background_of: int, other_subject: str) -> io.NodeOutput:
        """The prompt. Raises ValueError if it has no {}, a picture is none of the file's, or an embedding is gone."""
        if prompt.count(SLOT) != 1:
            raise ValueError(f"prompt has {prompt.count(SLOT)} slots; write exactly one {{}} where the subject goes, "
                             "for example: Photo of a {} on the beach.")
        detex = read_about(_file(file))
        words = detex.subjects[0]
        who = other_subject.strip() or f"{_embedding(detex, words.placeholder)} {words.class_words}".strip()
        kept = with_attributes(who, _attribute(detex, POSE, pose_of), detex.pose_is,
                               _attribute(detex, BACKGROUND, background_of))
        said = prompt.replace(SLOT, kept)
        return io.NodeOutput(said, ui={"text": [said]})


def _attribute(detex: Detex, attribute: str, number: int) -> str:
    """What a prompt says for an attribute of picture `number` (from 1); "" for 0."""
    if not number:
        return ""
    placeholder, at = detex.owner(number)
    return _embedding(detex, attribute_word(placeholder, attribute, at))


def _embedding(detex: Detex, word: str) -> str:
    return prompt_text(find_embedding(detex.embedding(word)))


def _file_input():
    return io.Combo.Input("file", options=file_names(FOLDER),
                          tooltip=f"File of models/{FOLDER}, which Train has saved with Train DETEX.")


def _file(name: str) -> Path:
    return find_file(FOLDER, name)


NODES = [PersonalizeDetexEncodePicture, PersonalizeDetexPrompt]
