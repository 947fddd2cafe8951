"""Widgets that several nodes have: one word, one type, one range, one meaning.

Every share is a number from 0 to 1. What a node, a paper or its authors say of a value is given as a sentence.
"""
from __future__ import annotations

from comfy_api.latest import io

from .types import LossType, TrainableType

SIZE_STEP = 8
LARGEST_SIZE = 2048


def advanced(*inputs) -> list:
    """The inputs, marked as those that few people change: the page folds them away."""
    for each in inputs:
        each.advanced = True
    return list(inputs)


def percent_inputs(start: float = 0.0, end: float = 1.0, of_start: str = "", of_end: str = "") -> list:
    """start_percent and end_percent: the part of the sampling schedule in which something acts, as core counts it."""
    return [_percent("start_percent", start, "begins to act", "0 is pure noise", of_start),
            _percent("end_percent", end, "ends to act", "1 is the finished picture", of_end)]


def _percent(name: str, default: float, verb: str, scale: str, remark: str):
    tooltip = f"Where it {verb}, as share of the sampling schedule, 0 to 1: {scale}. {remark}".strip()
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip)


def check_percents(start_percent: float, end_percent: float) -> None:
    """Raises ValueError if nothing lies between them."""
    if start_percent >= end_percent:
        raise ValueError(f"start_percent ({start_percent:g}) is not before end_percent ({end_percent:g}), so no step "
                         "would lie between them; lower the one or raise the other.")


def strength_input(tooltip: str, default: float = 1.0, name: str = "strength", least: float = 0.0, most: float = 1.0):
    """How strongly a patch acts while sampling; 0 is off."""
    return io.Float.Input(name, default=default, min=least, max=most, step=0.01, tooltip=tooltip)


def words_input(tooltip: str, name: str = "words", optional: bool = False):
    """Words of the prompt that are looked at, as `parse_words` reads them."""
    return io.String.Input(name, default="", optional=optional,
                           tooltip=f"{tooltip} Several are separated by commas.")


def prompt_again_inputs() -> list:
    """clip and prompt, for a conditioning that does not say by itself where its words are."""
    return [
        io.Clip.Input("clip", optional=True,
                      tooltip="Only together with prompt, where the prompt was not encoded by Encode with Spans: the "
                              "CLIP that encodes it, with the concept applied."),
        io.String.Input("prompt", default="", optional=True, multiline=True, advanced=True,
                        tooltip="Only together with clip: the text of that prompt once more, in which the words are "
                                "looked up.")]


def check_prompt_again(clip, prompt: str | None) -> None:
    """Raises ValueError if only one of the two is given."""
    if prompt and clip is None:
        raise ValueError("prompt is filled in but clip is not connected; connect it, or clear prompt, which a "
                         "conditioning of Encode with Spans does not need.")
    if clip is not None and not prompt:
        raise ValueError("clip is connected but prompt is empty; write the text of the conditioning there once more, "
                         "or disconnect clip, which a conditioning of Encode with Spans does not need.")


def step_inputs(remark: str = "") -> list:
    """first_step and last_step: the training steps in which something acts."""
    return advanced(
        io.Int.Input("first_step", default=1, min=1, max=100000,
                     tooltip=f"First training step at which it acts. {remark}".strip()),
        io.Int.Input("last_step", default=0, min=0, max=100000,
                     tooltip=f"Last training step at which it acts; 0: to the end. {remark}".strip()))


def weight_input(default: float, tooltip: str, name: str = "weight", step: float = 0.01):
    """Factor of a loss."""
    return io.Float.Input(name, default=default, min=0.0, max=1000.0, step=step, round=False, tooltip=tooltip)


def learning_rate_input(default: float, remark: str, name: str = "learning_rate", of: str = ""):
    """Step size of the optimiser. of: what it moves, or which optimiser it is."""
    return io.Float.Input(name, default=default, min=0.0, max=10.0, step=1e-7, round=False,
                          tooltip=f"Step size of the optimiser{of}, 0 to 10. {remark}")


def previous_parts_input(such_as: str = ""):
    """Where the chain of what is trained comes in."""
    return TrainableType.Input("previous", optional=True,
                               tooltip=f"Other parts that are trained at the same time{such_as}.")


def parts_output():
    """The chain of what is trained, with one more part."""
    return TrainableType.Output(display_name="trainable", tooltip="What Train may change; chain several of them.")


def previous_losses_input(such_as: str = ""):
    """Where the chain of losses comes in."""
    return LossType.Input("previous", optional=True, tooltip=f"Other losses that act at the same time{such_as}.")


def losses_output():
    """The chain of losses, with one more."""
    return LossType.Output(display_name="loss", tooltip="The objective: for Train, or for another loss.")


def steps_input(default: int, tooltip: str):
    """Steps of the optimiser."""
    return io.Int.Input("steps", default=default, min=1, max=100000, tooltip=tooltip)


def batch_size_input(default: int, tooltip: str):
    """Rows that a training step learns from."""
    return io.Int.Input("batch_size", default=default, min=1, max=64, tooltip=tooltip)


def seed_input(tooltip: str):
    """Start of random draws. It stays as it is after a run, as another seed would be another result."""
    return io.Int.Input("seed", default=0, min=0, max=0xffffffffffffffff,
                        control_after_generate=io.ControlAfterGenerate.fixed, tooltip=tooltip)


def size_input(default: int, tooltip: str, least: int = 64):
    """Side of a square in pixels."""
    return io.Int.Input("size", default=default, min=least, max=LARGEST_SIZE, step=SIZE_STEP, tooltip=tooltip)


def opacity_input(tooltip: str):
    """How much what is drawn covers the picture."""
    return io.Float.Input("opacity", default=0.6, min=0.0, max=1.0, step=0.05, tooltip=tooltip)
