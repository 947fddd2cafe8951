"""CoRe in the graph: its losses for training, and the refinement of a concept for one prompt."""
from __future__ import annotations

import comfy.utils
from comfy_api.latest import io
from torch import Tensor

from ...families.latents import latent_space
from ...text.apply import apply_concepts
from ...text.embedding_versions import embedding_versions
from ...text.placeholders import filled
from ...training.diffusion import ALWAYS
from ...types import ConceptType, LossType, PromptSetType, SubjectType
from .presets import PRESETS, RELEASED, Weighting, core_terms
from .test_time import Refinement, Scene, refine

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
            description="Keeps the subject's word from disturbing the rest of a prompt: in prompts of every kind, the "
                        "other words must be encoded, and attended to, as they are with the class word. Chain it "
                        "after Diffusion Loss.",
            search_aliases=["context regularization", "editability", "prompt following", "regularization"],
            inputs=[
                PromptSetType.Input("prompt_set",
                                    tooltip="Prompts in which the subject's word is compared with its class words; a "
                                            "new one is drawn in each step. CoRe: the set of the subject's kind, "
                                            "about 100 prompts."),
                io.Combo.Input("preset", options=[*PRESETS, CUSTOM],
                               tooltip="as released: formulas and weights of the authors' code. Eqs. 3–4: the "
                                       "paper's equations, weighted to pull equally hard at the start. custom: the "
                                       "three inputs below."),
                io.Combo.Input("formulas", options=list(PRESETS),
                               tooltip="Formulas of the preset custom. as released: cosine over the tokens, squares "
                                       "of every layer, sum over 6 rows. Eqs. 3–4: cosine over the features, square "
                                       "of the mean over all layers."),
                _weight("lambda_emb", RELEASED.embedding, "λ_emb, weight of the context embedding loss", "0.00015"),
                _weight("lambda_attn", RELEASED.attention, "λ_attn, weight of the context attention loss", "0.05"),
                io.Combo.Input("attention", options=list(ATTENTION),
                               tooltip="exact: two more runs of the U-Net in each step, as in the paper. estimate: "
                                       "the queries of the diffusion loss's own run for both prompts; costs next to "
                                       "nothing."),
                io.Int.Input("first_step", default=1, min=1, max=1000000,
                             tooltip="First step at which it acts. CoRe: 1."),
                io.Int.Input("last_step", default=0, min=0, max=1000000,
                             tooltip="Last step at which it acts; 0 for the end, as in CoRe."),
                LossType.Input("previous", optional=True,
                               tooltip="Other losses that act at the same time: Diffusion Loss for the paper's "
                                       "objective."),
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


class CoReTestTime(io.ComfyNode):
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
                io.Int.Input("steps", default=10, min=1, max=1000, tooltip="Steps of the optimiser. CoRe: 10."),
                io.Float.Input("learning_rate", default=5e-4, min=0.0, max=1.0, step=1e-7, round=False,
                               tooltip="Step size of AdamW, 0 to 1. CoRe: 0.0005."),
                io.Combo.Input("preset", options=list(PRESETS),
                               tooltip="Formulas and weights as for CoRe Loss; only the ratio of the weights matters "
                                       "here."),
                io.Int.Input("batch_size", default=6, min=1, max=64,
                             tooltip="Noised latents a step looks at. CoRe: 6. Fewer are faster."),
                io.Int.Input("size", default=512, min=64, max=4096, step=8,
                             tooltip="Width and height in pixels of the noise that is looked at when neither latent "
                                     "nor subject is connected, as the checkpoint was trained: 512 for SD1.x and SD2 "
                                     "base, 768 for SD2 with v-prediction, 1024 for SDXL."),
                io.Int.Input("seed", default=0, min=0, max=0xffffffffffffffff, control_after_generate=True,
                             tooltip="Start of the draws of noise and timesteps."),
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
    def execute(cls, model, clip, concept, prompt: str, steps: int, learning_rate: float, preset: str, batch_size: int,
                size: int, seed: int, latent=None, subject=(), vae=None) -> io.NodeOutput:
        """Refined CONCEPT, CONDITIONING, LOSS_MAP."""
        if subject and latent is not None:
            raise ValueError("latent and subject are both connected; connect one of them, or none.")
        if subject and vae is None:
            raise ValueError("subject is connected but vae is not; connect the checkpoint's VAE, which encodes the "
                             "pictures.")
        prompt = filled(prompt, concept[0].placeholder)
        how = Refinement(prompt, PRESETS[preset], steps, learning_rate, batch_size, seed)
        bar, losses = comfy.utils.ProgressBar(steps), []

        def each_step(record: dict) -> None:
            bar.update(1)
            losses.append(record["loss"])

        scene = Scene(_looked_at(model, latent, size), tuple(subject), vae)
        refined = refine(model, clip, concept, how, scene, each_step)
        taught = apply_concepts(clip, refined)
        return io.NodeOutput(refined, taught.encode_from_tokens_scheduled(taught.tokenize(prompt)), {"loss": losses})


def _looked_at(model, latent: dict | None, size: int) -> Tensor:
    """(N, C, h, w) in the model's space."""
    space = latent_space(model)
    if latent is None:
        return space.empty((size, size))
    samples = latent["samples"]
    if samples.ndim != 4 or samples.shape[1] != space.channels:
        raise ValueError(f"latent has the shape {tuple(samples.shape)} but the model takes latents of "
                         f"{space.channels} channels; encode a picture with this checkpoint's VAE.")
    if not samples.isfinite().all():
        raise ValueError(
            "latent holds values that are not numbers; look at the sampler or VAE that made it, or disconnect it."
        )
    return space.from_vae(samples.float().cpu())


NODES: list[type] = [CoReLoss, CoReTestTime]
