"""Nodes that train image blocks."""
from __future__ import annotations

from typing import get_args

from comfy_api.latest import io

from ...inputs import (
    learning_rate_input,
    losses_output,
    parts_output,
    previous_losses_input,
    previous_parts_input,
    step_inputs,
    weight_input,
)
from ...training.diffusion import step_window
from ...training.parts.embedding import EmbeddingPart
from ...training.recipe import TemplateRecipe
from ...types import RecipeType
from .blocks import Placement
from .nodes_apply import CATEGORY, MASKS
from .parts import ImageAttentionPart, WithReferences
from .terms import ReferenceAttentionLoss, Target

GIVEN = "given mask"


class PersonalizeTrainViCo(io.ComfyNode):
    """Adds image blocks and the subjects' embedding vectors to what is trained."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeTrainViCo",
            display_name="Train ViCo",
            category=CATEGORY,
            description="Trains image blocks that look at a reference picture, together with the subject's word; the "
            "model itself stays as it is. Needs Training References at recipe. On Train choose the preset "
            "ViCo.",
            search_aliases=["image attention", "visual condition", "personalization"],
            inputs=[
                learning_rate_input(1e-5, "ViCo: 0.00001.", of=" for the image blocks"),
                learning_rate_input(5e-3, "ViCo: 0.005; the authors' code multiplies it by the number of GPUs, 0.02 "
                                          "with their 4. 0: they stay as they are.", "embedding_learning_rate",
                                    of=" for the word's vectors"),
                _placement(
                    "Where image blocks stand, one after every other block with text attention. decoder: the "
                    "paper's four of SD1.x. encoder, both: for comparison (Fig. 8)."
                ),
                io.Combo.Input(
                    "object_mask",
                    options=[*MASKS, GIVEN],
                    tooltip="How the subject is cut out of the reference. Eq. 5: Otsu's threshold of the "
                    "attention to the word; the rest adds nothing. as released: the authors' ten "
                    "thresholds, the rest is left out of the softmax. none: no mask. given mask: "
                    "the masks of Subject.",
                ),
                previous_parts_input(", such as Train Adapter with OFT (Appendix I)"),
            ],
            outputs=[parts_output()],
        )

    @classmethod
    def execute(cls, learning_rate: float, embedding_learning_rate: float, placement: Placement, object_mask: str,
                previous=()) -> io.NodeOutput:
        """The chain with the image blocks and, unless their rate is 0, the vectors."""
        if any(isinstance(part, ImageAttentionPart) for part in previous):
            raise ValueError(
                "previous holds Train ViCo already, and one set of image blocks serves all subjects; keep one "
                "of the two."
            )
        if embedding_learning_rate and any(isinstance(part, EmbeddingPart) for part in previous):
            raise ValueError("previous holds Train Embedding, but Train ViCo trains the word's vectors itself; remove "
                             "Train Embedding, or set embedding_learning_rate to 0.")
        given = object_mask == GIVEN
        blocks = ImageAttentionPart(learning_rate, placement, "paper" if given else MASKS[object_mask], given)
        vectors = (EmbeddingPart(embedding_learning_rate),) if embedding_learning_rate else ()
        return io.NodeOutput((*previous, *vectors, blocks))


class PersonalizeTrainingReferences(io.ComfyNode):
    """Gives every training picture a reference."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeTrainingReferences", display_name="Training References", category=CATEGORY,
            description="Shows another picture of the same subject, drawn at random, beside every picture of the "
                        "training, for Train ViCo: what both share is the subject. A single picture is its own "
                        "reference.",
            search_aliases=["recipe", "reference picture"],
            inputs=[RecipeType.Input("recipe", optional=True,
                                     tooltip="The prompts that go with the pictures, from Training Prompts. Not "
                                             "connected: a photo of a {}")],
            outputs=[RecipeType.Output(display_name="recipe", tooltip="For recipe of Train.")])

    @classmethod
    def execute(cls, recipe=None) -> io.NodeOutput:
        """The recipe with references."""
        return io.NodeOutput(WithReferences(recipe or TemplateRecipe()))


class PersonalizeEndOfTextRegularisation(io.ComfyNode):
    """Adds ViCo's regularisation to the objective."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeEndOfTextRegularisation", display_name="End-of-Text Regularisation", category=CATEGORY,
            description="Holds the reference's attention to the subject's word to that of the end of the prompt, which "
                        "stays on the subject (ViCo, Eq. 6), so that the object mask stays good. Chain it after "
                        "Diffusion Loss.",
            search_aliases=["ViCo regularization", "EOT", "mask"],
            inputs=[
                weight_input(5e-4, "λ, multiplies this loss. ViCo: 0.0005.", step=1e-6),
                io.Combo.Input("target", options=list(get_args(Target)),
                               tooltip="What the attention to the word is drawn to. end of text: Eq. 6. object mask "
                                       "and given mask: the alignment of Fig. 9 to the word's own mask or to the masks "
                                       "of Subject, for training with object_mask none."),
                _placement("As on Train ViCo."),
                *step_inputs("ViCo: all steps."),
                previous_losses_input(": Diffusion Loss for the paper's objective")],
            outputs=[losses_output()])

    @classmethod
    def execute(cls, weight: float, target: Target, placement: Placement, first_step: int, last_step: int, previous=()
                ) -> io.NodeOutput:
        """The chain with one more loss."""
        window = step_window(first_step, last_step)
        return io.NodeOutput((*previous, ReferenceAttentionLoss(weight, target, placement, window)))


def _placement(tooltip: str):
    return io.Combo.Input("placement", options=list(get_args(Placement)), tooltip=tooltip)


NODES = [PersonalizeTrainViCo, PersonalizeTrainingReferences, PersonalizeEndOfTextRegularisation]
