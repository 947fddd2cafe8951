"""Nodes that measure what was learned."""
from __future__ import annotations

import comfy.sample
import comfy.utils
from comfy_api.latest import io, ui

from ..inputs import advanced, seed_input, words_input
from ..notice import progress_text
from ..recording.layer_choice import chosen_layers, layer_inputs
from ..recording.timesteps import parse_timesteps, timesteps_input
from ..text.concept import Concept
from ..text.layout import parse_words
from ..text.prompts import MOST_PROMPTS, PromptSet
from ..types import ConceptType, PromptSetType
from .comparing import Look, compare
from .similarity_report import means, report, table

CATEGORY = "personalize/evaluate"


class PersonalizeContextSimilarity(io.ComfyNode):
    """How a concept's word and the words around it bear each other."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeContextSimilarity", display_name="Context Similarity", category=CATEGORY,
            is_output_node=True,
            description="Whether a learned word leaves the rest of a prompt its own meaning: how similar the words "
                        "after it become to it, and how much they differ from the same prompt without it (Diverse "
                        "Context, Table 1), beside ordinary words in its place (CoRe, Figure 2).",
            search_aliases=["overfit", "concept overfitting", "sim1", "sim2", "KL divergence", "cosine similarity",
                            "prompt following", "diverse context"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the checkpoint on which the concept was trained."),
                ConceptType.Input("concept", tooltip="One concept, from Train or Load Concept; from Concept for where "
                                                     "training starts."),
                PromptSetType.Input("prompt_set",
                                    tooltip="Prompts in which it is put. Compared are the words after the {}; a prompt "
                                            "without any is left out. The class words may follow the {}, as in the "
                                            "paper: a {} dog in the desert."),
                words_input("Words that are put in its place, to compare with: for a dog puppy, cat, as in CoRe's "
                            "Figure 2.", name="control_words"),
                io.Int.Input("prompt_count", default=200, min=1, max=MOST_PROMPTS,
                             tooltip="How many of the prompts are looked at, spread evenly over the set. The paper: "
                                     "200."),
                io.Model.Input("model", optional=True,
                               tooltip="Only together with latent, for the divergence of attention (SKL): the model "
                                       "that draws with the word."),
                io.Latent.Input("latent", optional=True,
                                tooltip="Only together with model: a picture of the subject, from VAE Encode, which "
                                        "the model looks at with every prompt."),
                *advanced(timesteps_input(optional=True), seed_input("Start of the noise."), *layer_inputs())],
            outputs=[
                io.String.Output(display_name="report", tooltip="To read: the three numbers, and the cosines of the "
                                                                "context words."),
                io.String.Output(display_name="table", tooltip="Every prompt with tabs between columns, for "
                                                               "spreadsheets."),
                io.Float.Output(display_name="sim1", tooltip="Cosine of the word and its context, -1 to 1. The paper: "
                                                             "0.50 for Textual Inversion, 0.41 with its loss."),
                io.Float.Output(display_name="sim2", tooltip="Cosine of the context with the word and without it, -1 "
                                                             "to 1. The paper: 0.39, and 0.74 with its loss."),
                io.Float.Output(display_name="skl", tooltip="Symmetric divergence of the attention to the word and to "
                                                            "its context; not a number without model and latent. The "
                                                            "paper: 1.59, and 2.35 with its loss.")])

    @classmethod
    def execute(cls, clip, concept: tuple[Concept, ...], prompt_set: PromptSet, control_words: str, prompt_count: int,
                seed: int, layers: str, layer_numbers: str, timesteps: str = "200, 400", model=None, latent=None
                ) -> io.NodeOutput:
        """Report, table, sim₁, sim₂, SKL."""
        if len(concept) != 1:
            raise ValueError(f"concept holds {len(concept)} concepts, of which one is compared at a time; connect the "
                             "one you want, such as from Load Concept.")
        look = _look(model, latent, timesteps, seed, layers, layer_numbers)
        templates = _spread(prompt_set.templates, prompt_count)
        bar = comfy.utils.ProgressBar(len(templates))

        def each_prompt(number: int) -> None:
            bar.update_absolute(number, len(templates))
            progress_text(f"Prompt {number} of {len(templates)}")

        found = compare(clip, concept[0], templates, parse_words(control_words), look, each_prompt)
        to_concept, to_itself, divergence = means(found)
        shown = report(found, concept[0].class_words)
        return io.NodeOutput(shown, table(found), to_concept, to_itself,
                             float("nan") if divergence is None else divergence, ui=ui.PreviewText(shown))


def _look(model, latent, timesteps: str, seed: int, layers: str, layer_numbers: str) -> Look | None:
    if (model is None) != (latent is None):
        given, missing = ("latent", "model") if model is None else ("model", "latent")
        raise ValueError(f"{given} is connected but {missing} is not; connect both for the divergence of attention, "
                         "or neither.")
    if model is None:
        return None
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    return Look(model, samples, parse_timesteps(timesteps), seed, chosen_layers(model, layers, layer_numbers))


def _spread(templates: tuple[str, ...], count: int) -> tuple[str, ...]:
    count = min(count, len(templates))
    return tuple(templates[number * len(templates) // count] for number in range(count))


NODES: list[type] = [PersonalizeContextSimilarity]
