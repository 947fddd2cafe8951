"""CoRe in the graph: its losses for training, and the refinement of a concept for one prompt."""
from __future__ import annotations

from comfy_api.latest import io

from ..training.diffusion import ALWAYS
from ..types import LossType, PromptSetType
from .presets import PRESETS, RELEASED, Weighting, core_terms

CATEGORY = "personalize/core"
CUSTOM = "custom"
ATTENTION = ("exact", "estimate")


class CoReLoss(io.ComfyNode):
    """Adds CoRe's two losses to the objective."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeCoReLoss", display_name="CoRe Loss", category=CATEGORY,
            description="Keeps the subject's word from disturbing the rest of a prompt: in prompts of every kind, the other "
                        "words must be encoded, and attended to, as they are with the class word. Chain it after "
                        "Diffusion Loss.",
            search_aliases=["context regularization", "editability", "prompt following", "regularization"],
            inputs=[
                PromptSetType.Input("prompt_set", tooltip="Prompts in which the subject's word is compared with its class "
                                                          "words; a new one is drawn in each step. CoRe: the set of the "
                                                          "subject's kind, about 100 prompts."),
                io.Combo.Input("preset", options=[*PRESETS, CUSTOM],
                               tooltip="as released: formulas and weights of the authors' code. Eqs. 3–4: the paper's "
                                       "equations, weighted to pull equally hard at the start. custom: the three inputs "
                                       "below."),
                io.Combo.Input("formulas", options=list(PRESETS),
                               tooltip="Formulas of the preset custom. as released: cosine over the tokens, squares of "
                                       "every layer, sum over 6 rows. Eqs. 3–4: cosine over the features, square of the "
                                       "mean over all layers."),
                _weight("lambda_emb", RELEASED.embedding, "λ_emb, weight of the context embedding loss", "0.00015"),
                _weight("lambda_attn", RELEASED.attention, "λ_attn, weight of the context attention loss", "0.05"),
                io.Combo.Input("attention", options=list(ATTENTION),
                               tooltip="exact: two more runs of the U-Net in each step, as in the paper. estimate: the "
                                       "queries of the diffusion loss's own run for both prompts; costs next to nothing."),
                io.Int.Input("first_step", default=1, min=1, max=1000000, tooltip="First step at which it acts. CoRe: 1."),
                io.Int.Input("last_step", default=0, min=0, max=1000000,
                             tooltip="Last step at which it acts; 0 for the end, as in CoRe."),
                LossType.Input("previous", optional=True,
                               tooltip="Other losses that act at the same time: Diffusion Loss for the paper's objective."),
            ],
            outputs=[LossType.Output(display_name="loss", tooltip="The objective: for Train, or for another loss.")])

    @classmethod
    def execute(cls, prompt_set, preset: str, formulas: str, lambda_emb: float, lambda_attn: float, attention: str,
                first_step: int, last_step: int, previous=()) -> io.NodeOutput:
        """The chain with CoRe's terms."""
        weighting = PRESETS.get(preset) or Weighting(PRESETS[formulas].formula, lambda_emb, lambda_attn)
        window = (first_step, last_step or ALWAYS[1])
        return io.NodeOutput((*previous, *core_terms(prompt_set.templates, weighting, attention == "estimate", window)))


def _weight(name: str, default: float, meaning: str, released: str):
    return io.Float.Input(name, default=default, min=0.0, max=1e6, step=1e-7, round=False,
                          tooltip=f"{meaning}, for the preset custom; 0 leaves it out. As released: {released}.")


NODES: list[type] = [CoReLoss]
