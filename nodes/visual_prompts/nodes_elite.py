"""Nodes of ELITE."""
from __future__ import annotations

import functools
from typing import get_args

from comfy_api.latest import io
from torch import Tensor

from ..inputs import check_percents, percent_inputs, strength_input
from ..model_files import file_names, find_file, validated, versions
from ..types import EliteType, VisualTokensType
from . import CATEGORY
from .elite_attention import with_elite
from .elite_encoding import elite_tokens
from .elite_files import Elite, read_elite
from .folders import ELITE_FOLDER
from .tokens import Combine, VisualTokens

_find = functools.partial(find_file, ELITE_FOLDER)


class PersonalizeLoadElite(io.ComfyNode):
    """Reads ELITE's two files."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeLoadElite", display_name="Load ELITE", category=CATEGORY,
            description="Reads ELITE's global and local mapper from models/elite.",
            search_aliases=["elite", "subject embedding", "reference picture"],
            inputs=[
                io.Combo.Input("global_mapper", options=file_names(ELITE_FOLDER),
                               tooltip="The file that makes a word of a picture, as released global_mapper.pt, from "
                                       "models/elite."),
                io.Combo.Input("local_mapper", options=file_names(ELITE_FOLDER),
                               tooltip="The file that makes patches of the subject, as released local_mapper.pt.")],
            outputs=[EliteType.Output(display_name="elite", tooltip="For Encode Picture (ELITE) and Apply ELITE.")])

    @classmethod
    def validate_inputs(cls, global_mapper, local_mapper) -> bool | str:
        """Takes the check of the files from ComfyUI, so that new ones can be used at once."""
        return validated(_find, global_mapper, local_mapper)

    @classmethod
    def fingerprint_inputs(cls, global_mapper, local_mapper) -> str:
        """Changes when a file does."""
        return versions(_find, global_mapper, local_mapper)

    @classmethod
    def execute(cls, global_mapper: str, local_mapper: str) -> io.NodeOutput:
        """Elite."""
        return io.NodeOutput(read_elite(_find(global_mapper), _find(local_mapper)))


class PersonalizeEncodePictureElite(io.ComfyNode):
    """Reference picture and mask → a word and patches."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeEncodePictureElite", display_name="Encode Picture (ELITE)", category=CATEGORY,
            description="Turns a reference picture into a word for the prompt, and its subject into 256 local patches "
                        "with its details.",
            search_aliases=["elite", "subject embedding", "visual tokens"],
            inputs=[
                EliteType.Input("elite", tooltip="From Load ELITE."),
                io.ClipVision.Input("clip_vision", tooltip="ViT-L/14 (clip-vit-large-patch14), from Load CLIP Vision."),
                io.Image.Input("image", tooltip="Reference picture with the subject in the middle, any size; the whole "
                                                "of it is seen, its proportions changed, as released."),
                io.Combo.Input("combine", options=list(get_args(Combine)),
                               tooltip="With several pictures: average of their words, all words one after the other "
                                       "(both with the patches of all pictures), or the first picture for the first "
                                       "image of the batch and so on. ELITE: one picture."),
                io.Mask.Input("mask", optional=True,
                              tooltip="The subject, white, in the picture's size; all that is not black counts. As "
                                      "released. A subject painted in the MaskEditor is connected as it is; only "
                                      "Load Image's mask of a picture with transparency needs Invert Mask. Not "
                                      "connected: what is not transparent, or the whole picture.")],
            outputs=[VisualTokensType.Output(display_name="visual_tokens",
                                             tooltip="The word for Encode Prompt with Picture, and all for Apply "
                                                     "ELITE.")])

    @classmethod
    def execute(cls, elite: Elite, clip_vision, image: Tensor, combine: Combine,
                mask: Tensor | None = None) -> io.NodeOutput:
        """PERSONALIZE_VISUAL_TOKENS."""
        return io.NodeOutput(elite_tokens(elite, clip_vision, image, mask, combine))


class PersonalizeApplyElite(io.ComfyNode):
    """ELITE's cross-attention in a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeApplyElite", display_name="Apply ELITE", category=CATEGORY,
            description="Gives a model ELITE's keys and values for the text and its attention to the subject's "
                        "patches. The prompt must hold the picture's word, from Encode Prompt with Picture.",
            search_aliases=["elite", "local mapping", "global mapping"],
            inputs=[
                io.Model.Input("model", tooltip="SD1.x, as released SD1.4; also with LoRAs and other patches."),
                EliteType.Input("elite", tooltip="From Load ELITE."),
                VisualTokensType.Input("visual_tokens", tooltip="From Encode Picture (ELITE)."),
                strength_input("λ: how much the subject's patches count, 0 to 3; 0 is off. As released: 0.8; 0.6 in "
                               "the authors' demo. More keeps details, less follows the prompt.", 0.8, "local_strength",
                               most=3.0),
                strength_input("Share of ELITE's keys and values for the text, 0 to 1; 0 is off and keeps the model's "
                               "own. As released: 1.", name="text_strength"),
                *percent_inputs(of_start="For the patches alone. As released: 0.",
                                of_end="For the patches alone. As released: 1.")],
            outputs=[io.Model.Output(display_name="model", tooltip="For a sampler, or for further patches.")])

    @classmethod
    def execute(cls, model, elite: Elite, visual_tokens: VisualTokens, local_strength: float, text_strength: float,
                start_percent: float, end_percent: float) -> io.NodeOutput:
        """MODEL."""
        check_percents(start_percent, end_percent)
        window = start_percent, end_percent
        return io.NodeOutput(with_elite(model, elite, visual_tokens, text_strength, local_strength, window))


NODES: list[type] = [PersonalizeLoadElite, PersonalizeEncodePictureElite, PersonalizeApplyElite]
