"""Nodes that read ViCo files and let a model look at references."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from comfy_api.latest import io
from torch import Tensor

from ...inputs import (
    advanced,
    check_percents,
    check_prompt_again,
    percent_inputs,
    prompt_again_inputs,
    size_input,
    strength_input,
    words_input,
)
from ...model_files import FileChoice
from ...recording.record import Record
from ...text.concept import Concept
from ...text.embedding_versions import embedding_versions
from ...text.tokens import prompt_tokens
from ...training.augment import Fit
from ...types import ConceptType, RecordType, ViCoType
from .apply import with_references
from .files import FOLDER, ViCo, file_of_run, read_vico
from .maths import Variant
from .references import Halves, Use, encode_reference

CATEGORY = "personalize/vico"
AS_TRAINED = "as trained"
MASKS: dict[str, Variant] = {"Eq. 5": "paper", "as released": "released", "none": "none"}
NONE = "none"
FILES = FileChoice(FOLDER, NONE)


class PersonalizeLoadViCo(io.ComfyNode):
    """Reads trained image blocks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeLoadViCo", display_name="Load ViCo", category=CATEGORY,
            description="Reads the image blocks that Train ViCo has trained, or a cross_attention file of ViCo's "
                        "authors, from models/vico. The word itself is an embedding: Load Concept.",
            search_aliases=["image attention", "reference picture", "visual condition"],
            inputs=[
                io.Combo.Input("file", options=FILES.entries(), default=NONE,
                               tooltip="File of models/vico: cross_attention-399.pt of the authors, or what Train has "
                                       "saved there. none: the one that belongs to concept."),
                ConceptType.Input("concept", optional=True,
                                  tooltip="From Train or Load Concept: takes the image blocks that were trained "
                                          "together with it, of the same step, if file is none.")],
            outputs=[ViCoType.Output(display_name="vico", tooltip="For Apply ViCo.")])

    @classmethod
    def validate_inputs(cls, file) -> bool | str:
        """Takes the check of `file` from ComfyUI, so that a new file can be used at once."""
        return FILES.validated(file)

    @classmethod
    def fingerprint_inputs(cls, file=NONE, **_) -> str:
        """Changes when the file does; where that depends on the concept, when any file does."""
        return FILES.versions(file)

    @classmethod
    def execute(cls, file: str, concept: Sequence[Concept] = ()) -> io.NodeOutput:
        """VICO."""
        return io.NodeOutput(read_vico(_path(file, concept)))


class PersonalizeApplyViCo(io.ComfyNode):
    """Lets a model look at reference pictures while it draws."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeApplyViCo", display_name="Apply ViCo", category=CATEGORY,
            description="Lets a model look at a reference picture of your subject while it draws, so that fine detail "
                        "is kept. The subject's own pixels are found by the attention to its word. The model that "
                        "comes in stays as it is.",
            search_aliases=["image attention", "reference picture", "visual condition", "personalization",
                            "consistent character", "fine detail"],
            inputs=[
                io.Model.Input("model", tooltip="The kind of model that ViCo was trained on, also with LoRAs, "
                                                "ControlNets and other patches."),
                ViCoType.Input("vico", tooltip="From Load ViCo."),
                io.Vae.Input("vae", tooltip="VAE of the same checkpoint: encodes the reference."),
                io.Image.Input("image", tooltip="Reference picture of the subject, of the training or another one. "
                                                "Several in a batch are all looked at. Transparent parts are no "
                                                "subject."),
                words_input("Words of the prompt for the subject, such as <my-dog>. Empty: the word that ViCo was "
                            "trained with, else the learned word in the prompt."),
                strength_input("How much the reference counts, 0 to 1; 0 is off. ViCo: 1."),
                *percent_inputs(of_start="ViCo: 0.", of_end="ViCo: 1."),
                io.Combo.Input("object_mask", options=[AS_TRAINED, *MASKS], advanced=True,
                               tooltip="How the subject is cut out of the reference. Eq. 5: Otsu's threshold, the rest "
                                       "adds nothing. as released: the authors' ten thresholds, the rest is left out "
                                       "of the softmax. none: no mask. as trained: as the file says; for the authors' "
                                       "files as released."),
                io.Combo.Input("halves", options=list(get_args(Halves)), advanced=True,
                               tooltip="Which side of the guidance looks at the reference. both: each with its own "
                                       "prompt, as released. shared: both, seen once with the positive prompt; "
                                       "faster. conditional: only the positive one."),
                io.Int.Input("reuse_steps", default=1, min=1, max=100, advanced=True,
                             tooltip="Steps that share one look at the reference, 1 to 100: more are faster, with a "
                                     "slightly different picture. ViCo: 1."),
                *advanced(size_input(0, "Side in pixels of the square that the reference is made into. 0: as in the "
                                        "training; 512 for the authors' files.", least=0)),
                io.Combo.Input("fit", options=list(get_args(Fit)), default="squash", advanced=True,
                               tooltip="What happens to a reference that is not square: crop to its middle, pad with "
                                       "grey, or squash, as released."),
                io.Mask.Input("mask", optional=True,
                              tooltip="Mask of the subject for each picture of image, 1 on the subject, in place of "
                                      "the automatic one."),
                io.Image.Input("image_2", optional=True,
                               tooltip="Reference of a second object, for ViCo trained on two subjects (Appendix J)."),
                words_input("Words of the prompt for the second object. Empty: the second word that ViCo was trained "
                            "with.", "words_2", optional=True),
                io.Mask.Input("mask_2", optional=True, tooltip="Mask of the second object in image_2."),
                *prompt_again_inputs()],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For a sampler, or for further patches."),
                RecordType.Output(display_name="record",
                                  tooltip="Masks and attention on the reference in each step, for Show Masks and Show "
                                          "Attention with the reference at image and the sampler's latent.")])

    @classmethod
    def fingerprint_inputs(cls, prompt="", **_) -> str:
        """Changes when an embedding file that the prompt names does."""
        return embedding_versions(prompt)

    @classmethod
    def execute(cls, model, vico: ViCo, vae, image: Tensor, words: str, strength: float, start_percent: float,
                end_percent: float, object_mask: str, halves: Halves, reuse_steps: int, size: int, fit: Fit, mask=None,
                image_2=None, words_2: str = "", mask_2=None, clip=None, prompt: str = "") -> io.NodeOutput:
        """MODEL, PERSONALIZE_RECORD."""
        check_percents(start_percent, end_percent)
        check_prompt_again(clip, prompt)
        record = Record("Apply ViCo", every_step=True)
        if not strength:
            return io.NodeOutput(model, record)
        objects = [(image, words, mask)] + ([(image_2, words_2, mask_2)] if image_2 is not None else [])
        references = [encode_reference(model, vae, pictures, name.strip(), shape, size or vico.size, fit)
                      for pictures, name, shape in objects]
        use = Use(vico.variant if object_mask == AS_TRAINED else MASKS[object_mask], strength,
                  (start_percent, end_percent), halves, reuse_steps)
        layout = prompt_tokens(clip, prompt).layout if prompt else None
        blocks = vico.blocks_for(model, model.model.get_dtype_inference())
        return io.NodeOutput(with_references(model, blocks, vico.words, references, use, record, layout), record)


def _path(file: str, concept: Sequence[Concept]) -> Path:
    if file != NONE:
        return FILES.find(file)
    if not concept:
        raise ValueError("file is none and no concept is connected; choose a file of models/vico, or connect the "
                         "concept of a training with Train ViCo.")
    return file_of_run(concept[0])


NODES = [PersonalizeLoadViCo, PersonalizeApplyViCo]
