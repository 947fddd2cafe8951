"""Nodes of ELITE."""
from __future__ import annotations

import functools

import torch
from comfy_api.latest import io
from torch import Tensor
from torch.nn import functional as F

from ..types import EliteType, VisualTokensType
from . import CATEGORY
from .elite import LAYERS
from .elite_attention import EliteTokens, with_elite
from .elite_files import Elite, read_elite
from .folders import ELITE_FOLDER, file_names, find_file, validated, versions
from .pictures import SQUASH, checked, checked_vision, see_image
from .tokens import EACH, ELITE, SEVERAL, VisualTokens, combined

_find = functools.partial(find_file, ELITE_FOLDER)


class LoadElite(io.ComfyNode):
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


class EncodePictureElite(io.ComfyNode):
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
                io.Combo.Input("pictures", options=list(SEVERAL),
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
    def execute(cls, elite: Elite, clip_vision, image: Tensor, pictures: str,
                mask: Tensor | None = None) -> io.NodeOutput:
        """VISUAL_TOKENS."""
        whole, subject = checked(image), _subject(image, mask)
        states = _states(elite, clip_vision, whole)
        patches = _states(elite, clip_vision, whole * subject[..., None])
        side = round((patches[0].shape[1] - 1) ** 0.5)
        grid = F.interpolate(subject[:, None], (side, side), mode="nearest").flatten(1)
        local = elite.patches(patches, grid)
        local = local if pictures == EACH else local.flatten(0, 1)[None]
        return io.NodeOutput(EliteTokens(combined(elite.word(states), pictures), ELITE, local=local))


class ApplyElite(io.ComfyNode):
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
                io.Float.Input("local_weight", default=0.8, min=0.0, max=3.0, step=0.01,
                               tooltip="λ: how much the subject's patches count, 0 to 3. As released: 0.8; 0.6 in the "
                                       "authors' demo. More keeps details, less follows the prompt."),
                io.Float.Input("text_weight", default=1.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of ELITE's keys and values for the text, 0 to 1; 0 keeps the model's "
                                       "own. As released: 1."),
                io.Float.Input("start", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Where the patches begin to count, as fraction of the noise schedule: 0 at pure "
                                       "noise. As released: 0."),
                io.Float.Input("end", default=1.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Where they end, as fraction of the noise schedule: 1 at the finished picture. "
                                       "As released: 1.")],
            outputs=[io.Model.Output(display_name="model", tooltip="For a sampler, or for further patches.")])

    @classmethod
    def execute(cls, model, elite: Elite, visual_tokens: VisualTokens, local_weight: float, text_weight: float,
                start: float, end: float) -> io.NodeOutput:
        """MODEL."""
        return io.NodeOutput(with_elite(model, elite, visual_tokens, text_weight, local_weight, (start, end)))


def _states(elite: Elite, clip_vision, image: Tensor) -> list[Tensor]:
    """What each of the five layers sees, (B, 1 + P, w)."""
    vision = checked_vision(clip_vision)
    found, needed = vision.config["hidden_size"], elite.of_word.vision_width
    if found != needed or vision.config["num_hidden_layers"] <= max(LAYERS):
        raise ValueError(f"This CLIP Vision has {vision.config['num_hidden_layers']} layers of width {found} but "
                         f"{elite.of_word.name} needs 24 of width {needed}; load ViT-L/14 (clip-vit-large-patch14) in "
                         "Load CLIP Vision.")
    return list(see_image(vision, image, SQUASH, LAYERS).layers.unbind(1))


def _subject(image: Tensor, mask: Tensor | None) -> Tensor:
    """(B, H, W) of 0 and 1. Raises ValueError if the mask does not fit the pictures or is empty."""
    count, height, width = image.shape[:3]
    if mask is None:
        mask = image[..., 3] if image.shape[-1] == 4 else torch.ones(count, height, width)
    mask = (mask.reshape(-1, *mask.shape[-2:]).cpu() > 0).float()
    if mask.shape[1:] != (height, width) or len(mask) not in (1, count):
        raise ValueError(f"mask is {len(mask)} × {mask.shape[2]}×{mask.shape[1]} but image is {count} × "
                         f"{width}×{height}; connect the mask made for these pictures (Load Image gives an empty 64×64 "
                         "mask if the file has no transparency).")
    if not mask.flatten(1).any(1).all():
        raise ValueError("mask is empty; paint the subject white, or disconnect it.")
    return mask.expand(count, -1, -1)


NODES: list[type] = [LoadElite, EncodePictureElite, ApplyElite]
