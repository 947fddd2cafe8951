"""Nodes that record attention: while a sampler runs, or on a latent that is given."""
from __future__ import annotations

import comfy.sample
from comfy_api.latest import io

from ..attention.words import words_of
from ..inputs import check_percents, percent_inputs, prompt_again_inputs, seed_input, words_input
from ..text.embedding_versions import embedding_versions
from ..text.layout import parse_words
from ..types import RecordType
from .latent_recorder import record_latent
from .layer_choice import chosen_layers, layer_inputs
from .record import Record
from .sampling_recorder import recording_model
from .timesteps import parse_timesteps, timesteps_input

CATEGORY = "personalize/attention"
MEAN, EVERY_STEP = "mean over steps", "every step"


class PersonalizeRecordAttention(io.ComfyNode):
    """Makes a MODEL record the attention to words while any sampler runs it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeRecordAttention", display_name="Record Attention", category=CATEGORY,
            description="Records where the model looks for each word while a sampler draws, for Show Attention and "
                        "Subject Mask. The picture stays the same, bit for bit. Put it last before the sampler.",
            search_aliases=["attention map", "heat map", "heatmap", "DAAM", "cross attention", "interpretability"],
            inputs=[
                io.Model.Input("model", tooltip="The model that the sampler is to use: SD1.x, SD2.x, SDXL, Lumina 2 or "
                                               "Z-Image."),
                _words_input(),
                *layer_inputs(),
                io.Combo.Input("keep", options=[MEAN, EVERY_STEP],
                               tooltip="mean over steps needs a few MB; every step lets Show Attention draw each of "
                                       "them and needs that much per step."),
                *percent_inputs(),
                *prompt_again_inputs()],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For the sampler."),
                RecordType.Output(display_name="record", tooltip="For Show Attention and Subject Mask; it fills while "
                                                                 "the sampler runs.")])

    @classmethod
    def fingerprint_inputs(cls, prompt="", **_) -> str:
        """Changes when an embedding file that the prompt names does."""
        return embedding_versions(prompt)

    @classmethod
    def execute(cls, model, words, layers, layer_numbers, keep, start_percent, end_percent, clip=None,
                prompt="") -> io.NodeOutput:
        """MODEL, PERSONALIZE_RECORD."""
        check_percents(start_percent, end_percent)
        record = Record("Record Attention", every_step=keep == EVERY_STEP)
        chosen = chosen_layers(model, layers, layer_numbers)
        wanted = words_of(parse_words(words), clip, prompt)
        return io.NodeOutput(recording_model(model, record, chosen, wanted, (start_percent, end_percent)), record)


class PersonalizeAttentionOfLatent(io.ComfyNode):
    """Records the attention of a model to a latent that is given, without sampling."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeAttentionOfLatent", display_name="Attention of Latent", category=CATEGORY,
            description="Where the model looks for each word in a picture you already have: its latent is noised at "
                        "the timesteps you choose, and the model looks at each once. For Show Attention and Subject "
                        "Mask.",
            search_aliases=["attention map", "heat map", "heatmap", "DAAM", "real image", "segmentation"],
            inputs=[
                io.Model.Input("model", tooltip="SD1.x, SD2.x, SDXL, Lumina 2 or Z-Image."),
                io.Conditioning.Input("conditioning",
                                      tooltip="A prompt that describes the picture, from Encode with Spans, or from "
                                              "any encoder together with clip and prompt."),
                io.Latent.Input("latent", tooltip="The picture, from VAE Encode."),
                _words_input(),
                timesteps_input(),
                seed_input("Start of the noise."),
                *layer_inputs(),
                io.Combo.Input("keep", options=[MEAN, EVERY_STEP],
                               tooltip="Whether the maps of each timestep are kept, or only their mean."),
                *prompt_again_inputs()],
            outputs=[RecordType.Output(display_name="record", tooltip="For Show Attention and Subject Mask.")])

    @classmethod
    def fingerprint_inputs(cls, prompt="", **_) -> str:
        """Changes when an embedding file that the prompt names does."""
        return embedding_versions(prompt)

    @classmethod
    def execute(cls, model, conditioning, latent, words, timesteps, seed, layers, layer_numbers, keep, clip=None,
                prompt="") -> io.NodeOutput:
        """PERSONALIZE_RECORD."""
        record = Record("Attention of Latent", every_step=keep == EVERY_STEP, complete=True)
        wanted = words_of(parse_words(words), clip, prompt)
        samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
        record_latent(model, conditioning, samples, parse_timesteps(timesteps), seed, record,
                      chosen_layers(model, layers, layer_numbers), wanted)
        record.current.require_maps(record.made_by)
        return io.NodeOutput(record)


def _words_input():
    return words_input("Words of the positive prompt, as they stand there: dog, red hat. Empty: the placeholders and "
                       "all words that Encode with Spans remembered.")


NODES: list[type] = [PersonalizeRecordAttention, PersonalizeAttentionOfLatent]
