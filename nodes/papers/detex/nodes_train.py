"""Nodes that train a word apart from poses and backgrounds."""
from __future__ import annotations

from comfy_api.latest import io

from ...inputs import (
    advanced,
    learning_rate_input,
    losses_output,
    parts_output,
    previous_losses_input,
    previous_parts_input,
    step_inputs,
    weight_input,
)
from ...training.augment import GREY
from ...training.diffusion import step_window
from ...training.parts.embedding import EmbeddingPart
from ...training.parts.weights import KeyValuePart
from ...types import RecipeType
from .parts import AttributesPart
from .recipe import AttributeRecipe
from .seeing import vision_fingerprint
from .terms import AttributeAttentionLoss

CATEGORY = "personalize/detex"
ATTRIBUTE_WORDS = {"animate": "pose", "inanimate": "view"}
BLANKS = {"grey": GREY, "black": 0.0, "white": 1.0}
NORMALISED, RAW = "largest value 1", "raw"


class PersonalizeTrainDetex(io.ComfyNode):
    """Adds the word, words of poses and backgrounds, and keys and values to what is trained; gives their prompts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeTrainDetex", display_name="Train DETEX", category=CATEGORY,
            description="Trains the placeholder beside a word for each picture's pose and one for its background, so "
                        "that it means the subject alone; afterwards a prompt may keep the pose or the background of "
                        "a picture. Trains what Train Embedding and Train Key/Value do, in their place. Connect both "
                        "outputs to Train, and Attribute Attention Loss.",
            search_aliases=["decoupled", "disentangled", "pose", "background", "custom diffusion", "disenbooth"],
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip="From Load CLIP Vision: sees poses and backgrounds. DETEX: "
                                                           "CLIP ViT-L/14 fits its mappers' size."),
                io.Combo.Input("subject_is", options=list(ATTRIBUTE_WORDS),
                               tooltip="animate: prompts say 'pose' of what lives. inanimate: 'view' of what stands "
                                       "still, whose looks would be taken for its pose."),
                learning_rate_input(1e-5, "DETEX: 0.00001, of the word, the mappers, keys and values."),
                _share_input(),
                *advanced(
                    io.String.Input("attribute_word", default="",
                                    tooltip="Word in place of pose or view, such as expression. Empty: as subject_is "
                                            "says."),
                    io.Combo.Input("blank", options=list(BLANKS),
                                   tooltip="Colour of a background that is left out."),
                    io.Boolean.Input("mapper", default=True,
                                     tooltip="On: two small networks make the words of what clip_vision sees, so that "
                                             "they know new pictures too. Off: each word is a vector of its own, the "
                                             "paper's ablation."),
                    io.Boolean.Input("subject_only", default=False,
                                     tooltip="On: where the background is left out, only the subject counts in the "
                                             "diffusion loss; the paper finds it worse.")),
                previous_parts_input()],
            outputs=[parts_output(),
                     RecipeType.Output(display_name="recipe", tooltip="Prompts with the words; for recipe of Train.")])

    @classmethod
    def execute(cls, clip_vision, subject_is: str, learning_rate: float, filtered: float, attribute_word: str = "",
                blank: str = "grey", mapper: bool = True, subject_only: bool = False, previous=()) -> io.NodeOutput:
        """The chain with three more parts, and the recipe. Raises ValueError if one of them is in it already."""
        twice = next((part for part in previous if isinstance(part, (EmbeddingPart, KeyValuePart, AttributesPart))),
                     None)
        if twice is not None:
            raise ValueError(f"previous holds {_node_of(twice)}, which Train DETEX does itself; remove it.")
        word = attribute_word.strip() or ATTRIBUTE_WORDS[subject_is]
        seen = clip_vision if mapper else None
        parts = (EmbeddingPart(learning_rate), KeyValuePart(learning_rate),
                 AttributesPart(seen, vision_fingerprint(seen), mapper, word, learning_rate))
        recipe = AttributeRecipe(word, filtered, BLANKS[blank], subject_only)
        return io.NodeOutput((*previous, *parts), recipe)


class PersonalizeAttributeAttentionLoss(io.ComfyNode):
    """Adds DETEX's attention loss to the objective."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeAttributeAttentionLoss", display_name="Attribute Attention Loss", category=CATEGORY,
            description="Holds the attention to a picture's pose word to the subject's mask and that to its background "
                        "word to the rest (DETEX, Eq. 4), so that they do not learn each other's part. Needs masks at "
                        "Subject and the prompts of Train DETEX. Chain it after Diffusion Loss.",
            search_aliases=["DETEX loss", "cross attention loss", "mask"],
            inputs=[
                weight_input(0.01, "λ, multiplies this loss. DETEX: 0.01.", step=0.001),
                *advanced(
                    io.Combo.Input("map_values", options=[NORMALISED, RAW],
                                   tooltip=f"{NORMALISED}: each map is divided by its largest value, as attention is "
                                           "shared by all tokens and never near 1. raw: as it is."),
                    io.Boolean.Input("squared", default=False,
                                     tooltip="Off: the mean distance from the mask. On: the mean squared distance.")),
                *step_inputs("DETEX: all steps."),
                previous_losses_input(": Diffusion Loss")],
            outputs=[losses_output()])

    @classmethod
    def execute(cls, weight: float, map_values: str, squared: bool, first_step: int, last_step: int, previous=()
                ) -> io.NodeOutput:
        """The chain with the loss."""
        term = AttributeAttentionLoss(weight, map_values == NORMALISED, squared, step_window(first_step, last_step))
        return io.NodeOutput((*previous, term))


def _share_input():
    return io.Float.Input("filtered", default=0.5, min=0.0, max=1.0, step=0.01,
                          tooltip="γ, share of the rows in which a picture's background is left out, and its word with "
                                  "it, 0 to 1; needs masks at Subject. DETEX: 0.5. 1 paints blank backgrounds.")


def _node_of(part) -> str:
    if isinstance(part, EmbeddingPart):
        return "Train Embedding"
    return "Train Key/Value" if isinstance(part, KeyValuePart) else "Train DETEX"


NODES = [PersonalizeTrainDetex, PersonalizeAttributeAttentionLoss]
