"""Nodes of BLIP-Diffusion."""
from __future__ import annotations

from pathlib import Path
from typing import get_args

import comfy.model_management
from comfy_api.latest import io
from torch import Tensor

from ..model_files import validated, versions
from ..types import BlipDiffusionType, VisualTokensType
from . import CATEGORY
from .blip_diffusion_files import BlipDiffusion, files_of, find_folder, folder_names, read_blip_diffusion
from .pictures import Fit, checked
from .tokens import BLIP_DIFFUSION, Combine, VisualTokens, combined

WORKING_MEMORY = 512 * 2 ** 20


class PersonalizeLoadBlipDiffusion(io.ComfyNode):
    """Reads the picture encoder of a BLIP-Diffusion folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeLoadBlipDiffusion", display_name="Load BLIP-Diffusion", category=CATEGORY,
            description="Reads BLIP-Diffusion's picture encoder from a downloaded folder, in the layout of Hugging "
                        "Face or of LAVIS.",
            search_aliases=["blip", "q-former", "subject embedding", "reference picture"],
            inputs=[io.Combo.Input("folder", options=folder_names(),
                                   tooltip="Folder below models/blip_diffusion or models/diffusers that holds qformer "
                                           "(or blip_model and proj_layer), with BERT's vocab.txt inside.")],
            outputs=[BlipDiffusionType.Output(display_name="blip_diffusion",
                                              tooltip="For Encode Picture (BLIP-Diffusion).")])

    @classmethod
    def validate_inputs(cls, folder) -> bool | str:
        """Takes the check of `folder` from ComfyUI, so that a new folder can be used at once."""
        return validated(find_folder, folder)

    @classmethod
    def fingerprint_inputs(cls, folder) -> str:
        """Changes when a file of the folder does."""
        return "" if folder is None else versions(Path, *map(str, files_of(folder)))

    @classmethod
    def execute(cls, folder: str) -> io.NodeOutput:
        """BlipDiffusion."""
        return io.NodeOutput(read_blip_diffusion(find_folder(folder)))


class PersonalizeEncodePictureBlipDiffusion(io.ComfyNode):
    """Reference picture and its subject's name → tokens."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeEncodePictureBlipDiffusion",
            display_name="Encode Picture (BLIP-Diffusion)",
            category=CATEGORY,
            description="Turns a reference picture and the name of its subject into 16 visual tokens that stand in a "
            "prompt like words.",
            search_aliases=["blip", "q-former", "subject embedding", "visual tokens"],
            inputs=[
                BlipDiffusionType.Input("blip_diffusion", tooltip="From Load BLIP-Diffusion."),
                io.Image.Input(
                    "image",
                    tooltip="Reference picture, any size; several for the choice at combine. "
                    "Transparent parts are made grey.",
                ),
                io.String.Input("class_words", default="dog",
                                tooltip="What in the picture is meant, in one or a few ordinary words: dog, teddy "
                                        "bear."),
                io.Combo.Input(
                    "fit",
                    options=list(get_args(Fit)),
                    tooltip="crop: the square in the middle, as in the authors' code (LAVIS). squash: the whole "
                    "picture, its proportions changed, as in diffusers.",
                ),
                io.Combo.Input(
                    "combine",
                    options=list(get_args(Combine)),
                    tooltip="With several pictures: average of their tokens, as in LAVIS; all tokens of all "
                    "pictures; or the first picture for the first image of the batch and so on.",
                ),
            ],
            outputs=[VisualTokensType.Output(display_name="visual_tokens", tooltip="For Encode Prompt with Picture.")],
        )

    @classmethod
    def execute(cls, blip_diffusion: BlipDiffusion, image: Tensor, class_words: str, fit: Fit,
                combine: Combine) -> io.NodeOutput:
        """PERSONALIZE_VISUAL_TOKENS."""
        if not class_words.strip():
            raise ValueError("class_words is empty; write what in the picture is meant, for example dog.")
        device = comfy.model_management.text_encoder_device()
        comfy.model_management.free_memory(WORKING_MEMORY, device)
        vectors = blip_diffusion.tokens(checked(image), class_words.strip(), fit, device)
        return io.NodeOutput(VisualTokens(combined(vectors, combine), BLIP_DIFFUSION))


NODES: list[type] = [PersonalizeLoadBlipDiffusion, PersonalizeEncodePictureBlipDiffusion]
