"""Nodes that read ViCo files and let a model look at references."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from comfy_api.latest import io
from torch import Tensor

from ...families.latents import latent_space
from ...recording.record import Record
from ...text.concept import Concept
from ...text.embedding_versions import embedding_versions
from ...text.tokens import prompt_tokens
from ...training.augment import Fit, Preparation
from ...training.dataset import check_vae, encode_picture
from ...training.images import prepare, sources_from_tensors
from ...types import ConceptType, RecordType, ViCoType
from ...visual_prompts.folders import file_names, find_file, validated, versions
from .apply import Halves, Reference, Use, with_references
from .files import FOLDER, ViCo, file_of_run, read_vico
from .maths import Variant

CATEGORY = "personalize/vico"
AS_TRAINED = "as trained"
MASKS: dict[str, Variant] = {"Eq. 5": "paper", "as released": "released", "none": "none"}
HALVES = ("both", "shared", "conditional")
FITS = ("squash", "crop", "pad")
MOST_REFERENCES = 16  # one of 512 × 512 keeps 20 MB of features in SD1.x, for each prompt
NONE = "none"


class LoadViCo(io.ComfyNode):
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
                io.Combo.Input("file", options=[NONE, *file_names(FOLDER)], default=NONE,
                               tooltip="File of models/vico: cross_attention-399.pt of the authors, or what Train has "
                                       "saved there. none: the one that belongs to concept."),
                ConceptType.Input("concept", optional=True,
                                  tooltip="From Train or Load Concept: takes the image blocks that were trained "
                                          "together with it, of the same step, if file is none.")],
            outputs=[ViCoType.Output(display_name="vico", tooltip="For Apply ViCo.")])

    @classmethod
    def validate_inputs(cls, file) -> bool | str:
        """Takes the check of `file` from ComfyUI, so that a new file can be used at once."""
        return file == NONE or validated(_file, file)

    @classmethod
    def fingerprint_inputs(cls, file=NONE, **_) -> str:
        """Changes when the file does; where that depends on the concept, when any file does."""
        return versions(_file, *(file_names(FOLDER) if file == NONE else [file]))

    @classmethod
    def execute(cls, file: str, concept: Sequence[Concept] = ()) -> io.NodeOutput:
        """VICO."""
        return io.NodeOutput(read_vico(_path(file, concept)))


class ApplyViCo(io.ComfyNode):
    """Lets a model look at reference pictures while it draws."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeApplyViCo", display_name="Apply ViCo", category=CATEGORY,
            description="Lets a model look at a reference picture of your subject while it draws, so that fine detail "
                        "is kept. The subject's own pixels are found by the attention to its word. The model that "
                        "comes in stays as it is.",
            search_aliases=["image attention", "reference picture", "visual condition", "personalization"],
            inputs=[
                io.Model.Input("model", tooltip="The kind of model that ViCo was trained on, also with LoRAs, "
                                                "ControlNets and other patches."),
                ViCoType.Input("vico", tooltip="From Load ViCo."),
                io.Vae.Input("vae", tooltip="VAE of the same checkpoint: encodes the reference."),
                io.Image.Input("image", tooltip="Reference picture of the subject, of the training or another one. "
                                                "Several in a batch are all looked at. Transparent parts are no "
                                                "subject."),
                io.String.Input("word", default="",
                                tooltip="What the prompt calls the subject, such as <my-dog>. Empty: the word that "
                                        "ViCo was trained with, else the learned word in the prompt."),
                io.Float.Input("strength", default=1.0, min=0.0, max=1.0, step=0.01,
                               tooltip="How much the reference counts, 0 to 1. ViCo: 1. 0 changes nothing."),
                io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Where it begins to act, as fraction of the whole schedule: 0 at pure noise. "
                                       "ViCo: 0."),
                io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Where it ends, as fraction of the whole schedule: 1 at the finished picture. "
                                       "ViCo: 1."),
                io.Combo.Input("object_mask", options=[AS_TRAINED, *MASKS],
                               tooltip="How the subject is cut out of the reference. Eq. 5: Otsu's threshold, the rest "
                                       "adds nothing. as released: the authors' ten thresholds, the rest is left out "
                                       "of the softmax. none: no mask. as trained: as the file says; for the authors' "
                                       "files as released."),
                io.Combo.Input("halves", options=list(HALVES),
                               tooltip="Which side of the guidance looks at the reference. both: each with its own "
                                       "prompt, as released. shared: both, seen once with the positive prompt; "
                                       "faster. conditional: only the positive one."),
                io.Int.Input("reuse_steps", default=1, min=1, max=100,
                             tooltip="Steps that share one look at the reference, 1 to 100: more are faster, with a "
                                     "slightly different picture. ViCo: 1."),
                io.Int.Input("size", default=0, min=0, max=2048, step=8,
                             tooltip="Side of the square that the reference is made into, in pixels. 0: as in the "
                                     "training; 512 for the authors' files."),
                io.Combo.Input("fit", options=list(FITS),
                               tooltip="A reference that is no square is squashed, as released, cropped to its middle, "
                                       "or padded with grey."),
                io.Mask.Input("mask", optional=True,
                              tooltip="Mask of the subject for each picture of image, 1 on the subject, in place of "
                                      "the automatic one."),
                io.Image.Input("image_2", optional=True,
                               tooltip="Reference of a second object, for ViCo trained on two subjects (Appendix J)."),
                io.String.Input("word_2", default="", optional=True,
                                tooltip="What the prompt calls the second object. Empty: the second word that ViCo was "
                                        "trained with."),
                io.Mask.Input("mask_2", optional=True, tooltip="Mask of the second object in image_2."),
                io.Clip.Input("clip", optional=True,
                              tooltip="With prompt, for a positive prompt that was not encoded by Encode with Spans: "
                                      "the CLIP that encodes it, with the concept applied."),
                io.String.Input("prompt", default="", optional=True, multiline=True,
                                tooltip="The text of the positive prompt; only together with clip.")],
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
    def execute(cls, model, vico: ViCo, vae, image: Tensor, word: str, strength: float, start_percent: float,
                end_percent: float, object_mask: str, halves: Halves, reuse_steps: int, size: int, fit: Fit, mask=None,
                image_2=None, word_2: str = "", mask_2=None, clip=None, prompt: str = "") -> io.NodeOutput:
        """MODEL, PERSONALIZE_RECORD."""
        if start_percent >= end_percent:
            raise ValueError(f"start_percent ({start_percent:g}) is not before end_percent ({end_percent:g}), so no "
                             "step would look at the reference.")
        if prompt and clip is None:
            raise ValueError("prompt is filled in but clip is not connected; connect it, or clear prompt, which a "
                             "positive prompt from Encode with Spans does not need.")
        if clip is not None and not prompt:
            raise ValueError("clip is connected but prompt is empty; write the positive prompt there once more, or "
                             "disconnect clip, which a positive prompt from Encode with Spans does not need.")
        record = Record("Apply ViCo", every_step=True)
        if not strength:
            return io.NodeOutput(model, record)
        objects = [(image, word, mask)] + ([(image_2, word_2, mask_2)] if image_2 is not None else [])
        references = [_reference(model, vae, pictures, name.strip(), shape, size or vico.size, fit)
                      for pictures, name, shape in objects]
        use = Use(vico.variant if object_mask == AS_TRAINED else MASKS[object_mask], strength,
                  (start_percent, end_percent), halves, reuse_steps)
        layout = prompt_tokens(clip, prompt).layout if prompt else None
        blocks = vico.blocks_for(model, model.model.get_dtype_inference())
        return io.NodeOutput(with_references(model, blocks, vico.words, references, use, record, layout), record)


def _path(file: str, concept: Sequence[Concept]) -> Path:
    if file != NONE:
        return _file(file)
    if not concept:
        raise ValueError("file is none and no concept is connected; choose a file of models/vico, or connect the "
                         "concept of a training with Train ViCo.")
    return file_of_run(concept[0])


def _file(name: str) -> Path:
    return find_file(FOLDER, name)


def _reference(model, vae, image: Tensor, word: str, mask: Tensor | None, size: int, fit: Fit) -> Reference:
    sources = sources_from_tensors([image], [] if mask is None else [mask])
    if len(sources) > MOST_REFERENCES:
        raise ValueError(f"There are {len(sources)} reference pictures but Apply ViCo looks at {MOST_REFERENCES} at "
                         "most, as the features of each stay in memory; connect fewer.")
    made = [picture.made() for picture in prepare(sources, Preparation(size, fit, "none", 1, 0)).pictures]
    check_vae(vae)
    with torch.random.fork_rng(devices=[vae.device] if vae.device.type == "cuda" else []):
        torch.manual_seed(0)  # a VAE may draw its latent
        latents = encode_picture(vae, latent_space(model), torch.cat([pixels for pixels, _ in made]),
                                 f"the reference of {word}" if word else "the reference")
    masks = None
    if any(each is not None for _, each in made):
        masks = torch.cat([torch.ones_like(pixels[..., 0]) if each is None else each for pixels, each in made])
    return Reference(latents, word, masks)


NODES = [LoadViCo, ApplyViCo]
