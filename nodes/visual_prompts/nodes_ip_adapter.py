"""Nodes of IP-Adapter."""
from __future__ import annotations

import functools
from typing import get_args

import torch
from comfy_api.latest import io
from torch import Tensor

from ..inputs import check_percents, percent_inputs, strength_input
from ..model_files import file_names, find_file, validated, versions
from ..types import IPAdapterType, VisualTokensType
from . import CATEGORY
from .added_attention import with_added_attention
from .folders import IP_ADAPTER_FOLDER
from .ip_adapter_attention import token_attention
from .ip_adapter_files import BASE, IPAdapter, read_ip_adapter
from .pictures import Fit, Seen, checked, checked_vision, see, see_image
from .tokens import IP_ADAPTER, Combine, VisualTokens, combined

LAST_BUT_ONE = -2
_find = functools.partial(find_file, IP_ADAPTER_FOLDER)


class PersonalizeLoadIPAdapter(io.ComfyNode):
    """Reads an IP-Adapter file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeLoadIPAdapter", display_name="Load IP-Adapter", category=CATEGORY,
            description="Reads an IP-Adapter file (base, plus or full face, of SD1.5 or SDXL) from models/ipadapter.",
            search_aliases=["ipadapter", "image prompt", "reference picture", "reference image", "face"],
            inputs=[io.Combo.Input("file", options=file_names(IP_ADAPTER_FOLDER),
                                   tooltip="File of models/ipadapter, for example ip-adapter-plus_sd15.safetensors; "
                                           "for the family of the checkpoint. FaceID files cannot be used.")],
            outputs=[IPAdapterType.Output(display_name="ip_adapter",
                                          tooltip="For Encode Picture (IP-Adapter) and Apply IP-Adapter.")])

    @classmethod
    def validate_inputs(cls, file) -> bool | str:
        """Takes the check of `file` from ComfyUI, so that a new file can be used at once."""
        return validated(_find, file)

    @classmethod
    def fingerprint_inputs(cls, file) -> str:
        """Changes when the file does."""
        return versions(_find, file)

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        """IPAdapter."""
        return io.NodeOutput(read_ip_adapter(_find(file)))


class PersonalizeEncodePictureIPAdapter(io.ComfyNode):
    """Reference picture → tokens."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeEncodePictureIPAdapter", display_name="Encode Picture (IP-Adapter)", category=CATEGORY,
            description="Turns a reference picture into visual tokens as IP-Adapter does: 4 (base), 16 (plus) or 257 "
                        "(full face) vectors that a model can attend to.",
            search_aliases=["ipadapter", "image prompt", "reference picture", "reference image", "visual tokens"],
            inputs=[
                IPAdapterType.Input("ip_adapter", tooltip="From Load IP-Adapter."),
                io.ClipVision.Input("clip_vision", tooltip="The CLIP Vision that the file was trained with, from Load "
                                                           "CLIP Vision: ViT-H for SD1.5 and for files with vit-h in "
                                                           "their name, ViT-bigG for ip-adapter_sdxl."),
                io.Image.Input("image", tooltip="Reference picture, any size; several for the choice at combine. Only "
                                                "224 × 224 pixels of it are seen. Transparent parts are made grey."),
                io.Combo.Input("fit", options=list(get_args(Fit)),
                               tooltip="crop: the square in the middle, as released. squash: the whole picture, its "
                                       "proportions changed."),
                io.Combo.Input("combine", options=list(get_args(Combine)),
                               tooltip="With several pictures: average of their tokens, all tokens of all pictures one "
                                       "after the other, or the first picture for the first image of the batch and so "
                                       "on. IP-Adapter: one picture.")],
            outputs=[VisualTokensType.Output(display_name="visual_tokens",
                                             tooltip="For Apply IP-Adapter, or Orthogonalize Visual Embedding before "
                                                     "it. Holds also the tokens of no picture, for the negative "
                                                     "prompt's side.")])

    @classmethod
    def execute(cls, ip_adapter: IPAdapter, clip_vision, image: Tensor, fit: Fit, combine: Combine) -> io.NodeOutput:
        """PERSONALIZE_VISUAL_TOKENS."""
        vision = checked_vision(clip_vision)
        features = _features(ip_adapter, see_image(vision, checked(image), fit, [LAST_BUT_ONE]))
        vectors, nothing = ip_adapter.tokens(features), ip_adapter.tokens(_features_of_nothing(ip_adapter, vision))
        return io.NodeOutput(VisualTokens(combined(vectors, combine), IP_ADAPTER, nothing))


class PersonalizeApplyIPAdapter(io.ComfyNode):
    """Lets a model attend to a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeApplyIPAdapter", display_name="Apply IP-Adapter", category=CATEGORY,
            description="Gives a model IP-Adapter's attention to a picture's tokens beside the attention to the text. "
                        "The model that comes in stays as it is.",
            search_aliases=["ipadapter", "image prompt", "reference image", "style transfer",
                            "decoupled cross-attention"],
            inputs=[
                io.Model.Input("model", tooltip="SD1.x or SDXL, also with LoRAs and other patches."),
                IPAdapterType.Input("ip_adapter", tooltip="From Load IP-Adapter, of the model's family."),
                VisualTokensType.Input("visual_tokens",
                                       tooltip="From Encode Picture (IP-Adapter) with the same file, or from "
                                               "Orthogonalize Visual Embedding."),
                strength_input("How much the picture counts beside the text, -1 to 3; 0 is off. As released: 1; 0.5 to "
                               "0.8 leaves more to the prompt.", least=-1.0, most=3.0),
                *percent_inputs(of_start="As released: 0.", of_end="As released: 1."),
                VisualTokensType.Input("branch_tokens", optional=True,
                                       tooltip="Other tokens for the visual-only branch of Self-Attention Swap: the "
                                               "original ones when visual_tokens are orthogonalized. Not connected: "
                                               "the same.")],
            outputs=[io.Model.Output(display_name="model", tooltip="For a sampler, or for further patches.")])

    @classmethod
    def execute(cls, model, ip_adapter: IPAdapter, visual_tokens: VisualTokens, strength: float, start_percent: float,
                end_percent: float, branch_tokens: VisualTokens | None = None) -> io.NodeOutput:
        """MODEL."""
        check_percents(start_percent, end_percent)
        attention = token_attention(model, ip_adapter, visual_tokens, strength, branch_tokens)
        window = start_percent, end_percent
        return io.NodeOutput(with_added_attention(model, attention, window) if strength else model)


def _features(adapter: IPAdapter, seen: Seen) -> Tensor:
    """What the adapter reads: (B, p) for base, (B, T, w) for the others."""
    features = seen.embeds if adapter.kind == BASE else seen.layers[:, 0]
    if features.shape[-1] != adapter.vision_width:
        raise ValueError(f"This CLIP Vision gives vectors of width {features.shape[-1]} but {adapter.name} needs "
                         f"{adapter.vision_width}; load {adapter.vision_name} in Load CLIP Vision.")
    return features


def _features_of_nothing(adapter: IPAdapter, vision) -> Tensor:
    """For no picture: a zero vector for base, for the others what is seen in pixel values of zero."""
    if adapter.kind == BASE:
        return torch.zeros(1, adapter.vision_width)
    side = vision.image_size
    return _features(adapter, see(vision, torch.zeros(1, 3, side, side), [LAST_BUT_ONE]))


NODES: list[type] = [PersonalizeLoadIPAdapter, PersonalizeEncodePictureIPAdapter, PersonalizeApplyIPAdapter]
