"""CoRe in the graph: its losses for training, and the refinement of a concept for one prompt."""
from __future__ import annotations

from collections.abc import Sequence

import comfy.utils
from comfy_api.latest import io

from ...inputs import (
    advanced,
    batch_size_input,
    learning_rate_input,
    losses_output,
    previous_losses_input,
    seed_input,
    size_input,
    step_inputs,
    steps_input,
    weight_input,
)
from ...text.apply import apply_concepts
from ...text.embedding_versions import embedding_versions
from ...text.placeholders import filled
from ...training.diffusion import step_window
from ...types import ConceptType, PromptSetType, SubjectType
from .presets import FORMULAS, core_terms
from .test_time import Refinement, Scene, latents_of, refine

CATEGORY = "personalize/core"
ATTENTION = ("exact", "estimate")


class PersonalizeCoReLoss(io.ComfyNode):
    """Adds CoRe's two losses to the objective."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeCoReLoss", display_name="CoRe Loss", category=CATEGORY,
            description="Keeps the subject's word from disturbing the rest of a prompt: in prompts of every kind, the "
                        "other words must be encoded, and attended to, as they are with the class word. Chain it "
                        "after Diffusion Loss.",
            search_aliases=["context regularization", "editability", "prompt following", "regularization", "overfit"],
            inputs=[
                PromptSetType.Input("prompt_set",
                                    tooltip="Prompts in which the subject's word is compared with its class words; a "
                                            "new one is drawn in each step. CoRe: the set of the subject's kind, "
                                            "about 100 prompts."),
                *advanced(_formulas_input(
                    "as released: the authors' code, cosine over the tokens, squares of every layer, sum over 6 rows. "
                    "Eqs. 3–4: the paper's equations, cosine over the features, square of the mean over all layers.")),
                _times_lambda("embedding_weight", "λ_emb of the context embedding loss",
                              [each.embedding for each in FORMULAS.values()]),
                _times_lambda("attention_weight", "λ_attn of the context attention loss",
                              [each.attention for each in FORMULAS.values()]),
                io.Combo.Input("attention", options=list(ATTENTION),
                               tooltip="exact: two more runs of the U-Net in each step, as in the paper. estimate: "
                                       "the queries of the diffusion loss's own run for both prompts; costs next to "
                                       "nothing."),
                *step_inputs("CoRe: all steps."),
                previous_losses_input(": Diffusion Loss for the paper's objective"),
            ],
            outputs=[losses_output()])

    @classmethod
    def execute(cls, prompt_set, formulas: str, embedding_weight: float, attention_weight: float, attention: str,
                first_step: int, last_step: int, previous=()) -> io.NodeOutput:
        """The chain with CoRe's terms."""
        weighting = FORMULAS[formulas].times(embedding_weight, attention_weight)
        window = step_window(first_step, last_step)
        return io.NodeOutput((*previous, *core_terms(prompt_set.templates, weighting, attention == "estimate", window)))


def _formulas_input(tooltip: str):
    return io.Combo.Input("formulas", options=list(FORMULAS), tooltip=f"{tooltip} Each brings the weights λ that "
                                                                      "belong to it.")


def _times_lambda(name: str, meaning: str, given: Sequence[float]):
    values = ", ".join(f"{value:.6f}".rstrip("0") + f" for {formulas}" for formulas, value in zip(FORMULAS, given))
    return weight_input(1.0, f"Multiplies {meaning}: {values}. 1: as given; 0 leaves the loss out.", name)


class PersonalizeCoReTestTime(io.ComfyNode):
    """Refines a concept for one prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeCoReTestTime", display_name="CoRe Test-Time Optimization", category=CATEGORY,
            description="Refines a learned concept for one prompt in a few steps of CoRe's losses alone, so that the "
                        "prompt's other words are followed better. Works on any concept, also of other methods.",
            search_aliases=["test-time optimization", "refine embedding", "prompt following", "TTO"],
            inputs=[
                io.Model.Input("model", tooltip="The model that will draw, with its LoRAs, for example of the second "
                                                "stage."),
                io.Clip.Input("clip", tooltip="Text encoder of the same checkpoint."),
                ConceptType.Input("concept", tooltip="What was learned: from Train or Load Concept. With several, "
                                                     "those in the prompt are refined."),
                io.String.Input("prompt", default="a photo of {} on the beach", multiline=True,
                                tooltip="The prompt to draw, with the placeholder in one place, or with {} for it."),
                steps_input(10, "Steps of the optimiser. CoRe: 10."),
                learning_rate_input(5e-4, "CoRe: 0.0005.", of=", AdamW"),
                *advanced(
                    _formulas_input("The authors' code or the paper's equations, as for CoRe Loss."),
                    batch_size_input(6, "Noised latents a step looks at. CoRe: 6. Fewer are faster."),
                    size_input(512, "Side in pixels of the square of noise that is looked at when neither latent nor "
                                    "subject is connected, as the checkpoint was trained: 512 for SD1.x and SD2 base, "
                                    "768 for SD2 with v-prediction, 1024 for SDXL.")),
                seed_input("Start of the draws of noise and timesteps."),
                io.Latent.Input("latent", optional=True,
                                tooltip="Latents to noise and look at, for example of a first picture. Empty ones give "
                                        "only width and height."),
                SubjectType.Input("subject", optional=True,
                                  tooltip="The training pictures, to noise and look at as released; needs the VAE."),
                io.Vae.Input("vae", optional=True, tooltip="VAE of the checkpoint; only for the subject's pictures."),
            ],
            outputs=[
                ConceptType.Output(display_name="concept", tooltip="The concept, refined for this prompt only."),
                io.Conditioning.Output(display_name="conditioning",
                                       tooltip="The prompt with it: positive of a sampler."),
                io.LossMap.Output(display_name="loss_map", tooltip="Loss of every step, for Plot Loss Graph."),
            ])

    @classmethod
    def fingerprint_inputs(cls, prompt="", **_) -> str:
        """Changes when an embedding file that the prompt names does."""
        return embedding_versions(prompt)

    @classmethod
    def execute(cls, model, clip, concept, prompt: str, steps: int, learning_rate: float, formulas: str,
                batch_size: int, size: int, seed: int, latent=None, subject=(), vae=None) -> io.NodeOutput:
        """Refined CONCEPT, CONDITIONING, LOSS_MAP."""
        if subject and latent is not None:
            raise ValueError("latent and subject are both connected; connect one of them, or none.")
        if subject and vae is None:
            raise ValueError("subject is connected but vae is not; connect the checkpoint's VAE, which encodes the "
                             "pictures.")
        prompt = filled(prompt, concept[0].placeholder)
        how = Refinement(prompt, FORMULAS[formulas], steps, learning_rate, batch_size, seed)
        bar, losses = comfy.utils.ProgressBar(steps), []

        def each_step(record: dict) -> None:
            bar.update(1)
            losses.append(record["loss"])

        scene = Scene(latents_of(model, latent, size), tuple(subject), vae)
        refined = refine(model, clip, concept, how, scene, each_step)
        taught = apply_concepts(clip, refined)
        return io.NodeOutput(refined, taught.encode_from_tokens_scheduled(taught.tokenize(prompt)), {"loss": losses})


NODES: list[type] = [PersonalizeCoReLoss, PersonalizeCoReTestTime]
