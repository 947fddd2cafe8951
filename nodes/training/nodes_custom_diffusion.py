"""The node that reads what others have trained by Custom Diffusion."""
from __future__ import annotations

import functools

from comfy_api.latest import io

from ..model_files import file_names, find_file, validated, versions
from ..notice import notice
from ..text.layout import parse_words
from ..types import ConceptType
from .applied import with_weights
from .custom_diffusion_files import concepts, differences, read_delta, word_files

FOLDER = "loras"
_find = functools.partial(find_file, FOLDER)


class PersonalizeLoadCustomDiffusion(io.ComfyNode):
    """Reads weights and words of Custom Diffusion's scripts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeLoadCustomDiffusion", display_name="Load Custom Diffusion",
            category="personalize/training",
            description="Reads what the scripts of Custom Diffusion's authors and of diffusers have saved: a model "
                        "with its weights, the words that were learned with them, and the weights alone for Save LoRA "
                        "Weights.",
            search_aliases=["delta.bin", "delta checkpoint", "custom diffusion", "import", "diffusers",
                            "pytorch_custom_diffusion_weights"],
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint that the file was trained on: SD1.4 or SD1.5 for most, "
                                                "SD2.x or SDXL."),
                io.Combo.Input("file", options=file_names(FOLDER),
                               tooltip="delta.bin, delta_epoch=….ckpt, either of them compressed, or "
                                       "pytorch_custom_diffusion_weights, in a folder of models/loras. The words of "
                                       "the last one, such as <new1>.bin, lie beside it there."),
                io.String.Input("placeholder", default="",
                                tooltip="Words that prompts call them by, in their order, separated by commas. Empty: "
                                        "as the file says; where it names none <new1>, <new2> and so on."),
                io.String.Input("class_words", default="",
                                tooltip="What each of them is, in their order, separated by commas: cat, wooden pot. "
                                        "For losses and further training."),
                io.Clip.Input("clip", optional=True,
                              tooltip="The checkpoint's text encoder: needed where the file holds a trained one.")],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the file's weights, for a sampler."),
                ConceptType.Output(display_name="concept", tooltip="The file's words: for Apply Concept."),
                io.LoraModel.Output(display_name="lora", tooltip="The weights' differences alone: for Save LoRA "
                                                                 "Weights, or Reduce to LoRA."),
                io.Clip.Output(display_name="clip", tooltip="The CLIP, with the text encoder of the file if it holds "
                                                            "one; the words are taught by Apply Concept.")])

    @classmethod
    def validate_inputs(cls, file) -> bool | str:
        """Takes the check of `file` from ComfyUI, so that a new file can be used at once."""
        return validated(_find, file)

    @classmethod
    def fingerprint_inputs(cls, file=None, **_) -> str:
        """Changes when the file does, or a word's file beside it."""
        if file is None or validated(_find, file) is not True:
            return str(file)
        return versions(_find, file) + versions(lambda name: _find(file).parent / name,
                                                *(path.name for path in word_files(_find(file))))

    @classmethod
    def execute(cls, model, file: str, placeholder: str, class_words: str, clip=None) -> io.NodeOutput:
        """MODEL, CONCEPT, LORA_MODEL, CLIP."""
        path = _find(file)
        delta = read_delta(path)
        if delta.text_encoders and clip is None:
            notice(f"{delta.name} holds a trained text encoder, too; connect the checkpoint's CLIP at clip, without "
                   "which the subject is not drawn as it was learned.")
        lora = differences(delta, model, clip)
        words = concepts(delta, path, clip, parse_words(placeholder), parse_words(class_words))
        model, clip = with_weights(model, clip, lora)
        return io.NodeOutput(model, words, lora, clip)


NODES: list[type] = [PersonalizeLoadCustomDiffusion]
