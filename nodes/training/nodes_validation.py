"""The node that says by which pictures a training is judged."""
from __future__ import annotations

import comfy.samplers
from comfy_api.latest import io

from ..inputs import LARGEST_SIZE, SIZE_STEP, seed_input
from ..text.embedding_versions import embedding_versions
from ..types import ValidationType
from .validation import MOST_LETTERS, MOST_PICTURES, Validation

SUITS = "as suits the model"
PROMPTS = """\
a photo of {}
a photo of {} on the beach
a photo of {} in the snow
an oil painting of {}
a photo of {} wearing a red hat"""


class PersonalizeValidation(io.ComfyNode):
    """Prompts and noises for the pictures of Train."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeValidation", display_name="Validation Pictures", category="personalize/training",
            description="Several prompts, each from several noises, drawn while Train goes on, in place of its single "
                        "preview: side by side they show when the likeness is there and whether prompts are still "
                        "followed. They take at most the share of the run's time that you set, and change nothing that "
                        "is learned.",
            search_aliases=["validation", "sample prompts", "preview grid", "xy plot", "samples", "checkpoints"],
            inputs=[
                io.String.Input(
                    "prompts", default=PROMPTS, multiline=True,
                    tooltip="One a line; {} becomes the word of each subject in turn. Some that show the likeness, and "
                            "some that show whether the prompt is followed: a place, a style, a thing beside it. A "
                            "line without {} is drawn as it is."),
                io.Int.Input("noises", default=2, min=1, max=16,
                             tooltip="Pictures of each prompt, each from a noise of its own: the same ones at every "
                                     "step, so that only what was learned makes a difference."),
                io.Float.Input("share_of_time", default=0.25, min=0.0, max=1.0, step=0.05,
                               tooltip="Most of the run's time that the pictures may take, 0 to 1: if they would take "
                                       "more, they are drawn less often, then fewer at a time, and the node says so. "
                                       "0: only when Sample now is pressed; 1: always, as preview_every of Train "
                                       "says."),
                seed_input("Start of the noises, whatever the seed of Train is."),
                io.Int.Input("size", default=0, min=0, max=LARGEST_SIZE, step=SIZE_STEP, advanced=True,
                             tooltip="Side of the pictures in pixels; 0: as size of the first Subject. Smaller ones "
                                     "are drawn faster, but below the model's own size they are worse."),
                io.Combo.Input("sampler", options=[SUITS, *comfy.samplers.SAMPLER_NAMES], advanced=True,
                               tooltip="Sampler of the pictures."),
                io.Combo.Input("scheduler", options=[SUITS, *comfy.samplers.SCHEDULER_NAMES], advanced=True,
                               tooltip="Noise schedule of the pictures."),
                io.Int.Input("sampling_steps", default=0, min=0, max=1000, advanced=True,
                             tooltip="Steps of the sampler for each picture; 0: as suits the model, mostly 20."),
                io.Float.Input("cfg", default=0.0, min=0.0, max=100.0, step=0.1, advanced=True,
                               tooltip="How strongly pictures follow the prompt (cfg); 1: no guidance, 0: as suits the "
                                       "model, 7 for SD1.x, SD2.x and SDXL."),
            ],
            outputs=[ValidationType.Output(display_name="validation", tooltip="What Train draws on its way.")])

    @classmethod
    def fingerprint_inputs(cls, prompts="", **_) -> str:
        """Changes when an embedding file that a prompt names does."""
        return embedding_versions(prompts)

    @classmethod
    def execute(cls, prompts: str, noises: int, share_of_time: float, seed: int, size: int, sampler: str,
                scheduler: str, sampling_steps: int, cfg: float) -> io.NodeOutput:
        """Checks what is asked for."""
        lines = tuple(dict.fromkeys(line.strip() for line in prompts.splitlines() if line.strip()))
        if not lines:
            raise ValueError("There are no prompts; write one a line, such as: a photo of {} on the beach")
        if max(map(len, lines)) > MOST_LETTERS:
            raise ValueError(f"A prompt has {max(map(len, lines))} letters; write at most {MOST_LETTERS} a line.")
        if len(lines) * noises > MOST_PICTURES:
            raise ValueError(f"{len(lines)} prompts from {noises} noises are {len(lines) * noises} pictures at a time; "
                             f"write fewer prompts or set noises lower, for at most {MOST_PICTURES}.")
        return io.NodeOutput(Validation(
            lines, noises, seed, share_of_time, size, "" if sampler == SUITS else sampler,
            "" if scheduler == SUITS else scheduler, sampling_steps, cfg))


NODES: list[type] = [PersonalizeValidation]
