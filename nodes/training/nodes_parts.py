"""Nodes for what is optimised, what for, and which prompts are seen."""
from __future__ import annotations

from comfy.weight_adapter import adapter_maps
from comfy_api.latest import io

from ..text.embedding_versions import embedding_versions
from ..types import LossType, PromptSetType, RecipeType, TrainableType
from .diffusion import ALWAYS, CONSTANT, WEIGHTINGS, DiffusionLoss
from .parts.embedding import EmbeddingPart
from .parts.weights import AdapterPart, UNetPart
from .recipe import PHOTO, TemplateRecipe

CATEGORY = "personalize/training"


def _previous():
    return TrainableType.Input("previous", optional=True, tooltip="Other parts that are trained at the same time.")


def _trainable():
    return TrainableType.Output(display_name="trainable", tooltip="What Train may change; chain several of them.")


def learning_rate_input(name: str, default: float, tooltip: str):
    """A learning rate's widget, 0 to 10."""
    return io.Float.Input(name, default=default, min=0.0, max=10.0, step=1e-7, round=False, tooltip=tooltip)


def _learning_rate(default: float, paper: str):
    return learning_rate_input("learning_rate", default, f"Step size of the optimiser, 0 to 10. {paper}")


class TrainEmbedding(io.ComfyNode):
    """Adds the subjects' embedding vectors to what is trained."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeTrainEmbedding",
            display_name="Train Embedding",
            category=CATEGORY,
            description="Trains the vectors that the subjects' placeholders stand for; no weight of the model changes.",
            inputs=[
                _learning_rate(
                    5e-3, "CoRe: 0.005. Textual Inversion: 0.005 times GPUs times batch size, 0.04 in its paper."
                ),
                io.Int.Input(
                    "rescale_from",
                    default=120,
                    min=0,
                    max=100000,
                    tooltip="Step after which each vector's length is remembered. CoRe: 120 of 300 steps.",
                ),
                io.Int.Input(
                    "rescale_to",
                    default=180,
                    min=0,
                    max=100000,
                    tooltip="Last step at which each vector is set back to the remembered length (CoRe Eq. 6). "
                    "CoRe: 180 of 300 steps. Equal to rescale_from: no rescaling.",
                ),
                _previous(),
            ],
            outputs=[_trainable()],
        )

    @classmethod
    def execute(cls, learning_rate: float, rescale_from: int, rescale_to: int, previous=()) -> io.NodeOutput:
        """The chain with one more part."""
        return io.NodeOutput((*previous, EmbeddingPart(learning_rate, rescale_from, rescale_to)))


class TrainUNet(io.ComfyNode):
    """Adds all weights of the U-Net to what is trained."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeTrainUNet", display_name="Train U-Net", category=CATEGORY,
            description="Trains every weight of the U-Net, CoRe's second stage: about 16 bytes of memory a parameter "
                        "with AdamW, 14 GB for SD1.5. The loaded model stays as it is; the differences are saved.",
            inputs=[_learning_rate(2e-6, "CoRe's second stage: 0.000002."), _previous()],
            outputs=[_trainable()])

    @classmethod
    def execute(cls, learning_rate: float, previous=()) -> io.NodeOutput:
        """The chain with one more part."""
        return io.NodeOutput((*previous, UNetPart(learning_rate)))


class TrainAdapter(io.ComfyNode):
    """Adds a LoRA, LoKr or OFT of the U-Net to what is trained."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeTrainAdapter",
            display_name="Train Adapter",
            category=CATEGORY,
            description="Trains a small adapter of the U-Net's weights: more identity than an embedding alone, far "
            "less memory than the whole U-Net.",
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
                _learning_rate(1e-4, "LoRA: 0.0001 is usual."),
                io.Boolean.Input(
                    "attention_only",
                    default=True,
                    tooltip="On: only queries, keys, values and outputs of attention. Off: every linear "
                    "and convolution layer.",
                ),
                _previous(),
            ],
            outputs=[_trainable()],
        )

    @classmethod
    def execute(cls, algorithm: str, rank: int, alpha: float, learning_rate: float, attention_only: bool,
                previous=()) -> io.NodeOutput:
        """The chain with one more part."""
        return io.NodeOutput((*previous, AdapterPart(algorithm, rank, alpha, attention_only, learning_rate)))


class DiffusionLossNode(io.ComfyNode):
    """Adds the diffusion loss to the objective."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeDiffusionLoss", display_name="Diffusion Loss", category=CATEGORY,
            description="How well the model restores the subject's pictures from noise. Train uses it when no loss is "
                        "connected.",
            inputs=[
                io.Float.Input("weight", default=1.0, min=0.0, max=1000.0, step=0.01,
                               tooltip="Multiplies this loss. All papers: 1."),
                io.Float.Input("background", default=1.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Weight of what lies outside the subject's mask. 1: masks are ignored. 0: only "
                                       "the subject counts."),
                io.Int.Input("first_step", default=1, min=1, max=1000000, tooltip="First step at which it acts."),
                io.Int.Input("last_step", default=0, min=0, max=1000000,
                             tooltip="Last step at which it acts; 0 for the end."),
                io.Combo.Input("noise_levels", options=list(WEIGHTINGS), default=CONSTANT, optional=True,
                               tooltip="How noise levels count. constant: as in the papers. debiased: the noisy ones, "
                                       "which decide what is seen, count more: looks are learned sooner. min-SNR: the "
                                       "nearly clean ones count less."),
                LossType.Input("previous", optional=True, tooltip="Other losses that act at the same time."),
            ],
            outputs=[LossType.Output(display_name="loss", tooltip="The objective; chain several losses.")])

    @classmethod
    def execute(cls, weight: float, background: float, first_step: int, last_step: int, noise_levels: str = CONSTANT,
                previous=()) -> io.NodeOutput:
        """The chain with one more loss."""
        window = (first_step, last_step or ALWAYS[1])
        return io.NodeOutput((*previous, DiffusionLoss(weight, background, window, noise_levels)))


class TrainingPrompts(io.ComfyNode):
    """Says which prompts go with the pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeTrainingPrompts", display_name="Training Prompts", category=CATEGORY,
            description="The prompts that Train shows with the pictures; without this node it is 'a photo of a {}'.",
            inputs=[
                io.String.Input("prompts", multiline=True, default="\n".join(PHOTO),
                                tooltip="One prompt a line, each with one {} where the placeholder goes. CoRe uses the "
                                        "single prompt: a photo of a {}"),
                io.Boolean.Input("captions", default=True,
                                 tooltip="On: a picture that has a caption is shown with it in place of a prompt."),
                PromptSetType.Input("prompt_set", optional=True, tooltip="More prompts."),
            ],
            outputs=[RecipeType.Output(display_name="recipe", tooltip="Which prompts Train shows with the pictures.")])

    @classmethod
    def fingerprint_inputs(cls, prompts="", **_) -> str:
        """Changes when an embedding file that the prompt names does."""
        return embedding_versions(prompts)

    @classmethod
    def execute(cls, prompts: str, captions: bool, prompt_set=None) -> io.NodeOutput:
        """The recipe. Raises ValueError naming the line of a prompt without its one {}."""
        templates = [line.strip() for line in prompts.splitlines() if line.strip()]
        for number, template in enumerate(templates, 1):
            if template.count("{}") != 1:
                raise ValueError(f"Line {number} of prompts, '{template}', has {template.count('{}')} slots; write "
                                 "exactly one {} where the placeholder goes.")
        if prompt_set is not None:
            templates += [template for _, template in prompt_set.prompts]
        if not templates:
            raise ValueError("prompts is empty and no prompt_set is connected; write at least one prompt such as "
                             "a photo of a {}.")
        return io.NodeOutput(TemplateRecipe(tuple(templates), captions))


NODES = [TrainEmbedding, TrainUNet, TrainAdapter, DiffusionLossNode, TrainingPrompts]
