"""Diverse context in the graph: the contextualizer, and the loss that uses it."""
from __future__ import annotations

import functools
import itertools
import math
from pathlib import Path

import comfy.model_management as mm
import comfy.utils
from comfy_api.latest import io, ui

from ...inputs import (
    advanced,
    batch_size_input,
    learning_rate_input,
    losses_output,
    previous_losses_input,
    seed_input,
    step_inputs,
    steps_input,
    weight_input,
)
from ...locations import check_folder, first_folder
from ...model_files import FileChoice
from ...names import safe_name
from ...notice import progress_text
from ...text.layout import parse_words
from ...text.prompts import PromptSet
from ...training.description import encoder_fingerprint
from ...training.diffusion import step_window
from ...types import ContextualizerType, PromptSetType
from .contextualizer import HEADS, LAYERS, WIDTH, Contextualizer
from .files import FOLDER, begun_path, find_contextualizer, read_contextualizer, write_contextualizer
from .learning import Learning, Progress, made_of, train_contextualizer
from .terms import MaskedLanguageLoss

CATEGORY = "personalize/context"
BY_ENCODER = "of this text encoder"
FILES = FileChoice(FOLDER, BY_ENCODER)
FIGURES = {"accuracy", "unigram", "prompts"}
NOUNS = "person, man, woman, child, dog, cat, bird, horse, toy, car, cup, bag"


class PersonalizeTrainContextualizer(io.ComfyNode):
    """Learns to tell hidden words from what a text encoder makes of the others."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeTrainContextualizer", display_name="Train Contextualizer", category=CATEGORY,
            is_output_node=True,
            description="Once for each text encoder: a small network learns to tell hidden words of a prompt from how "
                        "the other words are encoded. Masked Words Loss then keeps a subject's word from disturbing "
                        "them. It needs no pictures and no subject, and is found again by the text encoder.",
            search_aliases=["masked language model", "MLM", "diverse context", "overfit"],
            inputs=[
                io.Clip.Input("clip", tooltip="The checkpoint's text encoder."),
                PromptSetType.Input("prompt_set",
                                    tooltip="Rich prompts of the kind that Masked Words Loss will draw: a Prompt Set "
                                            "of the kind rich animate or rich inanimate."),
                io.String.Input("name", default="contextualizer",
                                tooltip=f"File name in models/{FOLDER}, where it is saved."),
                io.String.Input("nouns", default=NOUNS, multiline=True,
                                tooltip="What stands in the place of the subject, drawn anew for every prompt, "
                                        "separated by commas: words of the kind that your subjects are of."),
                steps_input(2000, "Steps of the optimiser. It beats the most frequent word after some hundred steps, "
                                  "and tells after 2000 most of what can be told."),
                *advanced(
                    batch_size_input(32, "Prompts that a step learns from."),
                    learning_rate_input(1e-3, "It falls to nothing by half a cosine.", of=", AdamW"),
                    _share_input("Share of the words that are hidden, above 0 and below 1. The paper: 0.15."),
                    io.Int.Input("width", default=WIDTH, min=32, max=2048, step=32,
                                 tooltip="Channels of the network, a multiple of heads."),
                    io.Int.Input("depth", default=LAYERS, min=1, max=12, tooltip="Layers of self-attention."),
                    io.Int.Input("heads", default=HEADS, min=1, max=32, tooltip="Heads of each.")),
                seed_input("Start of the draws of prompts, nouns and hidden words.")],
            outputs=[
                ContextualizerType.Output(display_name="contextualizer", tooltip="For Masked Words Loss."),
                io.String.Output(display_name="report",
                                 tooltip="To read: how many hidden words of prompts that it never saw it tells.")])

    @classmethod
    def execute(cls, clip, prompt_set: PromptSet, name: str, nouns: str, steps: int, batch_size: int,
                learning_rate: float, share: float, width: int, depth: int, heads: int, seed: int) -> io.NodeOutput:
        """CONTEXTUALIZER, saved, and a report."""
        how = Learning(steps, batch_size, learning_rate, _checked(share), width, depth, heads, seed)
        if width % heads:
            raise ValueError(f"width ({width}) is no multiple of heads ({heads}); write "
                             f"{width // heads * heads or heads} for width, or other heads.")
        path = first_folder(FOLDER) / f"{safe_name(name, 'name')}.safetensors"
        check_folder(FOLDER, str(Path(safe_name(name, "name")).parent))
        prompts = _filled(prompt_set, nouns)
        key = made_of(encoder_fingerprint(clip), prompts, how)
        trained = _kept(path, key)
        if trained is None:
            trained = cls._trained(clip, prompts, how, path, begun_path(path.stem, key))
        report = (f"{path.stem}, learned from {trained.figures['prompts']:.0f} prompts with {trained.sizes.words} "
                  f"different words: {_told(trained.figures['accuracy'], trained.figures['unigram'])}")
        return io.NodeOutput(trained, report, ui=ui.PreviewText(report))

    @staticmethod
    def _trained(clip, prompts: list[str], how: Learning, path: Path, begun: Path) -> Contextualizer:
        bar = comfy.utils.ProgressBar(how.steps)

        def each_step(progress: Progress) -> None:
            mm.throw_exception_if_processing_interrupted()
            bar.update_absolute(progress.step)
            if progress.accuracy is not None:
                progress_text(f"Step {progress.step} of {how.steps}: {_told(progress.accuracy, progress.unigram)}")

        return train_contextualizer(clip, prompts, how, path.stem, each_step, begun=begun,
                                    save=functools.partial(write_contextualizer, path))


class PersonalizeLoadContextualizer(io.ComfyNode):
    """Reads a trained contextualizer."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeLoadContextualizer", display_name="Load Contextualizer", category=CATEGORY,
            description="Reads what Train Contextualizer has saved: by itself the newest of the text encoder at hand.",
            search_aliases=["masked language model", "MLM", "diverse context"],
            inputs=[
                io.Clip.Input("clip", tooltip="The checkpoint's text encoder, by which it is found."),
                io.Combo.Input("file", options=FILES.entries(), default=BY_ENCODER,
                               tooltip=f"{BY_ENCODER}: the newest in models/{FOLDER} that was trained on it. Or a "
                                       "file.")],
            outputs=[ContextualizerType.Output(display_name="contextualizer", tooltip="For Masked Words Loss.")])

    @classmethod
    def validate_inputs(cls, file) -> bool | str:
        """Takes the check of `file` from ComfyUI, so that a new file can be used at once."""
        return FILES.validated(file)

    @classmethod
    def fingerprint_inputs(cls, file=BY_ENCODER, **_) -> str:
        """Changes when the file does; where the encoder finds it, when any file does."""
        return FILES.versions(file)

    @classmethod
    def execute(cls, clip, file: str) -> io.NodeOutput:
        """CONTEXTUALIZER."""
        encoder = encoder_fingerprint(clip)
        path = find_contextualizer(encoder) if file == BY_ENCODER else FILES.find(file)
        if path is None:
            raise ValueError(f"No contextualizer in models/{FOLDER} was trained on this text encoder; train one with "
                             "Train Contextualizer, once for all subjects.")
        found = read_contextualizer(path)
        if found.encoder != encoder:
            raise ValueError(f"{path.name} was trained on another text encoder than this CLIP's; choose "
                             f"'{BY_ENCODER}', or train one with Train Contextualizer.")
        return io.NodeOutput(found)


class PersonalizeMaskedWordsLoss(io.ComfyNode):
    """Adds the masked-language-model loss to the objective."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeMaskedWordsLoss", display_name="Masked Words Loss", category=CATEGORY,
            description="Teaches the subject's word, in text alone, to live in many contexts: some words of a rich "
                        "prompt with it are hidden and must be told from the others (Diverse Context). Chain it after "
                        "Diffusion Loss; works with every part that is trained, and beside CoRe Loss.",
            search_aliases=["MLM loss", "masked language model", "diverse context", "concept overfitting",
                            "prompt following", "regularization"],
            inputs=[
                ContextualizerType.Input("contextualizer",
                                         tooltip="From Train or Load Contextualizer, of the same text encoder."),
                PromptSetType.Input("prompt_set", tooltip="Rich prompts, one of which is drawn in each step. The "
                                                          "diffusion loss keeps to simple ones."),
                weight_input(1e-4, "λ, multiplies this loss. The paper: 0.0001.", step=1e-5),
                *advanced(_share_input("ρ, share of the prompt's words that are hidden, above 0 and below 1; the "
                                       "subject's never is. The paper: 0.15.")),
                *step_inputs("The paper: all steps."),
                previous_losses_input(": Diffusion Loss")],
            outputs=[losses_output()])

    @classmethod
    def execute(cls, contextualizer: Contextualizer, prompt_set: PromptSet, weight: float, share: float,
                first_step: int, last_step: int, previous=()) -> io.NodeOutput:
        """The chain with the loss."""
        term = MaskedLanguageLoss(prompt_set.templates, contextualizer, weight, _checked(share),
                                  step_window(first_step, last_step))
        return io.NodeOutput((*previous, term) if weight else tuple(previous))


def _share_input(tooltip: str):
    return io.Float.Input("share", default=0.15, min=0.0, max=1.0, step=0.01, tooltip=tooltip)


def _checked(share: float) -> float:
    if not 0 < share < 1:
        raise ValueError(f"share ({share:g}) hides {'no word' if share <= 0 else 'every word'}, so that there is "
                         "nothing to learn; write a number between 0 and 1, such as 0.15.")
    return share


def _kept(path: Path, key: str) -> Contextualizer | None:
    """What the file holds, if that was learned from the same."""
    try:
        known = read_contextualizer(path) if path.is_file() else None
    except ValueError:  # what cannot be read is made anew
        return None
    return known if known is not None and known.made_of == key and known.figures.keys() >= FIGURES else None


def _filled(prompt_set: PromptSet, nouns: str) -> list[str]:
    """The prompts with one noun after the other in the slot."""
    known = parse_words(nouns)
    if not known:
        raise ValueError("nouns is empty; write some words that stand for the subject, such as dog, cat, toy.")
    return [template.replace("{}", noun) for template, noun in zip(prompt_set.templates, itertools.cycle(known))]


def _told(accuracy: float, unigram: float | None) -> str:
    assert unigram is not None and math.isfinite(accuracy)
    return (f"it tells {accuracy:.0%} of the hidden words of prompts that it never saw; always guessing the most "
            f"frequent word would tell {unigram:.0%}.")


NODES: list[type] = [PersonalizeTrainContextualizer, PersonalizeLoadContextualizer, PersonalizeMaskedWordsLoss]
