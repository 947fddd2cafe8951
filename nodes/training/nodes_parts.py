"""Nodes for what is optimised, what for, and which prompts are seen."""
from __future__ import annotations

from comfy.weight_adapter import adapter_maps
from comfy_api.latest import io

from ..inputs import (
    learning_rate_input,
    losses_output,
    parts_output,
    previous_losses_input,
    previous_parts_input,
    step_inputs,
    weight_input,
)
from ..text.embedding_versions import embedding_versions
from ..text.prompts import parse
from ..types import PromptSetType, RecipeType
from .diffusion import CONSTANT, WEIGHTINGS, DiffusionLoss, step_window
from .parts.embedding import EmbeddingPart
from .parts.text_encoder import TextEncoderPart
from .parts.weights import AdapterPart, KeyValuePart, UNetPart
from .recipe import PHOTO, TemplateRecipe

CATEGORY = "personalize/training"
ALL_WEIGHTS, LORA = "all weights", "LoRA"


class PersonalizeTrainEmbedding(io.ComfyNode):
    """Adds the subjects' embedding vectors to what is trained."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeTrainEmbedding",
            display_name="Train Embedding",
            category=CATEGORY,
            description="Trains the vectors that the subjects' placeholders stand for; no weight of the model changes.",
            search_aliases=["textual inversion", "train textual inversion", "train token", "learn a word"],
            inputs=[
                learning_rate_input(5e-3, "CoRe: 0.005. Textual Inversion: 0.005 times GPUs times batch size, 0.04 in "
                                          "its paper."),
                io.Int.Input("rescale_first_step", default=121, min=0, max=100000,
                             tooltip="First step after which each vector is set back to the length that it had before "
                                     "(CoRe Eq. 6). CoRe: 121 of 300 steps. 0: no rescaling."),
                io.Int.Input("rescale_last_step", default=180, min=0, max=100000,
                             tooltip="Last step after which each vector is set back to that length; 0: to the end. "
                                     "CoRe: 180 of 300 steps."),
                previous_parts_input(),
            ],
            outputs=[parts_output()],
        )

    @classmethod
    def execute(cls, learning_rate: float, rescale_first_step: int, rescale_last_step: int,
                previous=()) -> io.NodeOutput:
        """The chain with one more part."""
        rescaled = step_window(rescale_first_step, rescale_last_step) if rescale_first_step else None
        return io.NodeOutput((*previous, EmbeddingPart(learning_rate, rescaled)))


class PersonalizeTrainUNet(io.ComfyNode):
    """Adds all weights of the U-Net to what is trained."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeTrainUNet", display_name="Train U-Net", category=CATEGORY,
            description="Trains every weight of the U-Net, CoRe's second stage: about 16 bytes of memory a parameter "
                        "with AdamW, 14 GB for SD1.5. The loaded model stays as it is; the differences are saved.",
            search_aliases=["dreambooth", "full fine-tune", "finetune", "train checkpoint", "train whole model"],
            inputs=[learning_rate_input(2e-6, "CoRe's second stage: 0.000002."),
                    previous_parts_input()],
            outputs=[parts_output()])

    @classmethod
    def execute(cls, learning_rate: float, previous=()) -> io.NodeOutput:
        """The chain with one more part."""
        return io.NodeOutput((*previous, UNetPart(learning_rate)))


class PersonalizeTrainKeyValue(io.ComfyNode):
    """Adds the keys and values of the text to what is trained."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeTrainKeyValue", display_name="Train Key/Value", category=CATEGORY,
            description="Trains only what makes keys and values of the prompt for the picture, Custom Diffusion: more "
                        "identity than a word alone, a fiftieth of the U-Net. Several subjects are learned together. "
                        "Connect Train Embedding to previous, as the word is learned beside them.",
            search_aliases=["custom diffusion", "cross attention", "multi concept", "finetune"],
            inputs=[learning_rate_input(1e-5, "Custom Diffusion: 0.00001 times the batch size."),
                    previous_parts_input(": Train Embedding, as in the paper")],
            outputs=[parts_output()])

    @classmethod
    def execute(cls, learning_rate: float, previous=()) -> io.NodeOutput:
        """The chain with one more part."""
        return io.NodeOutput((*previous, KeyValuePart(learning_rate)))


class PersonalizeTrainTextEncoder(io.ComfyNode):
    """Adds the text encoders' weights, or a LoRA of them, to what is trained."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeTrainTextEncoder", display_name="Train Text Encoder", category=CATEGORY,
            description="Trains the text encoders beside the U-Net, as DreamBooth is mostly run: better likeness of "
                        "faces, at the price of how other prompts are understood. Connect Prior Pictures behind "
                        "Subject to keep the class. Train returns the CLIP.",
            search_aliases=["dreambooth", "train clip", "text encoder lora", "te lora", "finetune"],
            inputs=[io.Combo.Input("form", options=[ALL_WEIGHTS, LORA],
                                   tooltip="all weights: every weight of the layers, about 16 bytes of memory each "
                                           "with AdamW, 1.4 GB for SD1.5, 11 GB for SDXL. LoRA: a small adapter of "
                                           "attention and MLP."),
                    io.Int.Input("rank", default=8, min=1, max=256,
                                 tooltip="Rank of the LoRA, which counts once (alpha = rank); 4 to 32 is usual. "
                                         "Without effect on all weights."),
                    learning_rate_input(2e-6, "DreamBooth with all weights: 0.000002. LoRA: 0.00005 is usual."),
                    previous_parts_input(": Train U-Net or Train Adapter, and Train Embedding")],
            outputs=[parts_output()])

    @classmethod
    def execute(cls, form: str, rank: int, learning_rate: float, previous=()) -> io.NodeOutput:
        """The chain with one more part."""
        return io.NodeOutput((*previous, TextEncoderPart(learning_rate, rank if form == LORA else 0)))


class PersonalizeTrainAdapter(io.ComfyNode):
    """Adds a LoRA, LoKr or OFT of the U-Net to what is trained."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeTrainAdapter",
            display_name="Train Adapter (LoRA)",
            category=CATEGORY,
            description="Trains a small adapter of the U-Net's weights: more identity than an embedding alone, far "
            "less memory than the whole U-Net.",
            search_aliases=["train lora", "lora training", "lokr", "loha", "oft", "lycoris", "peft", "low rank"],
            inputs=[
                io.Combo.Input(
                    "algorithm",
                    options=[name for name in ("LoRA", "LoKr", "OFT", "LoHa") if name in adapter_maps],
                    tooltip="Kind of adapter, as ComfyUI's LoRA loader knows them.",
                ),
                io.Int.Input(
                    "rank",
                    default=8,
                    min=1,
                    max=256,
                    tooltip="Rank of LoRA and LoHa, factor of LoKr, block size of OFT; 4 to 32 is usual.",
                ),
                io.Float.Input(
                    "alpha",
                    default=8.0,
                    min=0.0,
                    max=1024.0,
                    step=0.1,
                    tooltip="Scale: a LoRA counts alpha / rank times. For OFT the largest rotation, 0 for any.",
                ),
                learning_rate_input(1e-4, "LoRA: 0.0001 is usual."),
                io.Boolean.Input(
                    "attention_only",
                    default=True,
                    tooltip="On: only queries, keys, values and outputs of attention. Off: every linear "
                    "and convolution layer.",
                ),
                previous_parts_input(),
            ],
            outputs=[parts_output()],
        )

    @classmethod
    def execute(cls, algorithm: str, rank: int, alpha: float, learning_rate: float, attention_only: bool,
                previous=()) -> io.NodeOutput:
        """The chain with one more part."""
        return io.NodeOutput((*previous, AdapterPart(algorithm, rank, alpha, attention_only, learning_rate)))


class PersonalizeDiffusionLoss(io.ComfyNode):
    """Adds the diffusion loss to the objective."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeDiffusionLoss", display_name="Diffusion Loss", category=CATEGORY,
            description="How well the model restores the subject's pictures from noise. Train uses it when no loss is "
                        "connected.",
            search_aliases=["denoising loss", "mse loss", "masked training", "masked loss", "min snr", "debiased"],
            inputs=[
                weight_input(1.0, "Multiplies this loss. All papers: 1."),
                io.Float.Input("background_weight", default=1.0, min=0.0, max=1.0, step=0.01,
                               tooltip="How much what lies outside the subject's mask counts, 0 to 1. 1: masks are "
                                       "ignored. 0: only the subject counts."),
                *step_inputs(),
                io.Combo.Input("noise_levels", options=list(WEIGHTINGS), default=CONSTANT, optional=True,
                               tooltip="How noise levels count. constant: as in the papers. debiased: the noisy ones, "
                                       "which decide what is seen, count more: looks are learned sooner. min-SNR: the "
                                       "nearly clean ones count less."),
                previous_losses_input(),
            ],
            outputs=[losses_output()])

    @classmethod
    def execute(cls, weight: float, background_weight: float, first_step: int, last_step: int,
                noise_levels: str = CONSTANT, previous=()) -> io.NodeOutput:
        """The chain with one more loss."""
        window = step_window(first_step, last_step)
        return io.NodeOutput((*previous, DiffusionLoss(weight, background_weight, window, noise_levels)))


class PersonalizeTrainingPrompts(io.ComfyNode):
    """Says which prompts go with the pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeTrainingPrompts", display_name="Training Prompts", category=CATEGORY,
            description="The prompts that Train shows with the pictures; without this node it is 'a photo of a {}'.",
            search_aliases=["captions", "caption", "instance prompt", "prompt templates", "recipe"],
            inputs=[
                io.String.Input("prompts", multiline=True, default="\n".join(PHOTO),
                                tooltip="One prompt a line, each with one {} where the placeholder goes. CoRe uses the "
                                        "single prompt: a photo of a {}"),
                io.Boolean.Input("use_captions", default=True,
                                 tooltip="On: a picture that has a caption is shown with it in place of a prompt."),
                PromptSetType.Input("prompt_set", optional=True, tooltip="More prompts."),
            ],
            outputs=[RecipeType.Output(display_name="recipe", tooltip="Which prompts Train shows with the pictures.")])

    @classmethod
    def fingerprint_inputs(cls, prompts="", **_) -> str:
        """Changes when an embedding file that the prompt names does."""
        return embedding_versions(prompts)

    @classmethod
    def execute(cls, prompts: str, use_captions: bool, prompt_set=None) -> io.NodeOutput:
        """The recipe. Raises ValueError naming the line of a prompt without its one {}."""
        templates = parse(prompts, "prompts").templates
        if prompt_set is not None:
            templates += prompt_set.templates
        if not templates:
            raise ValueError("prompts is empty and no prompt_set is connected; write at least one prompt such as "
                             "a photo of a {}.")
        return io.NodeOutput(TemplateRecipe(templates, use_captions))


NODES = [PersonalizeTrainEmbedding, PersonalizeTrainUNet, PersonalizeTrainKeyValue,
         PersonalizeTrainTextEncoder, PersonalizeTrainAdapter, PersonalizeDiffusionLoss, PersonalizeTrainingPrompts]
