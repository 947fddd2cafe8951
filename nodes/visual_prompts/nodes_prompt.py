"""Prompts with a picture in them."""
from __future__ import annotations

from comfy_api.latest import io

from ..text.embedding_versions import embedding_versions
from ..types import VisualTokensType
from . import CATEGORY
from .prompts import AS_RELEASED, encode_with_picture
from .tokens import VisualTokens


class PersonalizeEncodePromptWithPicture(io.ComfyNode):
    """A prompt in which a picture's tokens stand like a word."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeEncodePromptWithPicture", display_name="Encode Prompt with Picture", category=CATEGORY,
            description="Encodes a prompt in which {} stands for the picture: its visual tokens enter the text encoder "
                        "in that place, like words. For BLIP-Diffusion and ELITE.",
            search_aliases=["clip text encode", "multimodal prompt", "subject embedding"],
            inputs=[
                io.Clip.Input("clip", tooltip="Text encoder of the model that draws, SD1.x; for BLIP-Diffusion the one "
                                              "of its own folder."),
                VisualTokensType.Input("visual_tokens", tooltip="From Encode Picture (BLIP-Diffusion) or (ELITE)."),
                # Not dynamic: in dynamic prompts the page chooses one of {several|things} and so empties {}.
                io.String.Input("prompt", default="a {} dog swimming in a pool", multiline=True,
                                tooltip="The prompt with one {} for the picture. BLIP-Diffusion: a {} dog doing "
                                        "something, the subject's word after it. ELITE: a photo of a {}, without a "
                                        "word for the subject."),
                io.Int.Input("repeats", default=AS_RELEASED, min=0, max=100,
                             tooltip="How often the prompt is said, as far as there is room; more makes the text count "
                                     "more. 0: as released, 20 for BLIP-Diffusion and 1 for ELITE."),
                io.String.Input("visual_prompt", default="a {}",
                                tooltip="Neutral prompt, with one {}, of the second output. ELITE: a photo of a {}.")],
            outputs=[
                io.Conditioning.Output(display_name="conditioning",
                                       tooltip="The prompt with the picture: positive of a sampler, or for "
                                               "Orthogonalize Visual Embedding."),
                io.Conditioning.Output(display_name="visual_only",
                                       tooltip="The picture without the prompt: positive of Self-Attention Swap.")])

    @classmethod
    def fingerprint_inputs(cls, prompt="", **_) -> str:
        """Changes when an embedding file that the prompt names does."""
        return embedding_versions(prompt)

    @classmethod
    def execute(cls, clip, visual_tokens: VisualTokens, prompt: str, repeats: int, visual_prompt: str) -> io.NodeOutput:
        """CONDITIONING, CONDITIONING."""
        return io.NodeOutput(encode_with_picture(clip, visual_tokens, prompt, repeats),
                             encode_with_picture(clip, visual_tokens, visual_prompt, 1))


NODES: list[type] = [PersonalizeEncodePromptWithPicture]
