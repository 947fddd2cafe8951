"""Nodes about prompts: sets of templates, how a prompt is split, and conditioning that knows where its words are."""
from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io, ui
from torch import Tensor

from ..files import version_of
from ..foreign.text import shown_name
from ..inputs import words_input
from ..notice import notice
from ..picture_names import caption_names, is_picture
from ..types import ConceptType, PromptSetType
from .apply import apply_concepts
from .embedding_versions import embedding_versions
from .encoders import text_encoders
from .layout import Layout, parse_words
from .pairs import token_count
from .prompts import BUNDLED, MOST_PROMPTS, PromptSet, bundled, join_sets, parse, read_prompts
from .rich_prompts import SUBJECTS, instruction, kinds_of, rich_prompts
from .token_view import nearest_words, report, table, token_rows, vectors_in
from .tokens import prompt_tokens

NONE = "none"
MOST_FILES = 1000
_CONTENT_TOOLTIPS = {"background": "Use the bundled prompts about places and surroundings.",
                     "action": "Use the bundled prompts about what it does; only animate has them.",
                     "outfit": "Use the bundled prompts about what it wears; only animate has them.",
                     "style": "Use the bundled prompts about paintings, sculptures and other media.",
                     "colour": "Use the bundled prompts about colours and light."}
_RICH_TOOLTIPS = {"accessory": "Use rich prompts about what it carries, or what is on it.",
                  "viewpoint": "Use rich prompts about from where and how near it is seen.",
                  "relation": "Use rich prompts that put it beside other things.",
                  "companions": "Use rich prompts with a second subject in the picture."}
KINDS = (*_CONTENT_TOOLTIPS, *_RICH_TOOLTIPS)  # of prompts, each with a switch of its own
INSTRUCTION = 3  # number of that output of Prompt Set
RICH = "rich "  # in front of a subject's name: prompts that are put together


class PersonalizePromptSet(io.ComfyNode):
    """Prompt templates by kind: bundled ones and one's own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizePromptSet", display_name="Prompt Set", category="personalize/text",
            description="Prompts with a slot {} for the subject, from which losses and measurements draw: a bundled "
                        "set, your own, or both.",
            search_aliases=["templates", "regularization prompts", "prompt list", "prompt styles", "wildcards"],
            inputs=[
                io.Combo.Input("kind", options=[*BUNDLED, *(RICH + name for name in SUBJECTS), NONE], default="animate",
                               tooltip="Bundled prompts for people and animals (animate, 100), for objects (inanimate, "
                                       "100), or for any subject (universal, 50), as in CoRe's three lists; pictures: "
                                       "81 to train with, as many as Textual Inversion and ViCo have, for Training "
                                       "Prompts. rich: thousands, put together from places, actions, other things and "
                                       "more. none: only your own."),
                *(io.Boolean.Input(kind, default=True, advanced=True, tooltip=tooltip)
                  for kind, tooltip in _CONTENT_TOOLTIPS.items()),
                io.Combo.Input("file", options=[NONE, *_text_files()], default=NONE, advanced=True,
                               tooltip="Text file of ComfyUI's input folder with prompts of your own, one a line, each "
                                       "with exactly one {}. A line such as [action] gives the kind of those after it; "
                                       "# starts a comment."),
                io.String.Input("own_prompts", default="", multiline=True,
                                tooltip="More prompts of your own, written like such a file: a {} at the dentist. A "
                                        "text node may be connected, such as one that asks a language model with the "
                                        "instruction of this node; numbers and bullets of its list are left out."),
                *(io.Boolean.Input(kind, default=True, optional=True, advanced=True, tooltip=tooltip)
                  for kind, tooltip in _RICH_TOOLTIPS.items()),
                io.Int.Input("count", default=2000, min=10, max=MOST_PROMPTS, optional=True, advanced=True,
                             tooltip="How many rich prompts are put together, as many of each kind as of another."),
                PromptSetType.Input("previous", optional=True, tooltip="Another Prompt Set to put in front.")],
            outputs=[
                PromptSetType.Output(display_name="prompt_set", tooltip="The set, without repetitions."),
                io.String.Output(display_name="list", is_output_list=True, tooltip="The templates, one text each."),
                io.String.Output(display_name="report", tooltip="To read: how many prompts there are of each kind."),
                io.String.Output(display_name="instruction",
                                 tooltip="What to ask a language model for prompts about your own subject, of the "
                                         "kinds that are switched on; its answer goes into own_prompts.")])

    @classmethod
    def validate_inputs(cls, file) -> bool | str:
        """Takes the check of `file` from ComfyUI, so that a file added since the page was opened can be used."""
        try:
            _own_file(file)
            return True
        except ValueError as error:
            return str(error)

    @classmethod
    def fingerprint_inputs(cls, file=NONE, own_prompts="", **_) -> str:
        """Changes when the text file does, or an embedding file that a prompt names."""
        try:
            path = _own_file(file)
            return f"{version_of(path)}\n{embedding_versions(own_prompts, path)}"
        except ValueError as error:
            return str(error)

    @classmethod
    def idle_inputs(cls, inputs: Mapping[str, Any], output: int) -> Collection[str]:
        """What rich prompts are made of, where there are none; the instruction asks for all that is switched on."""
        kind = inputs.get("kind")
        if not isinstance(kind, str) or kind.startswith(RICH):
            return ()
        return ("count",) if output == INSTRUCTION else ("count", *_RICH_TOOLTIPS)

    @classmethod
    def execute(cls, kind: str, file: str, own_prompts: str, count: int = 2000, previous: PromptSet | None = None,
                **switches: bool) -> io.NodeOutput:
        """The prompt set, its templates, how many there are, and how to ask for more."""
        wanted = [name for name in KINDS if switches.get(name, True)]
        path, empty = _own_file(file), PromptSet(())
        prompts = join_sets(previous or empty, _prompts_of(kind, wanted, count),
                            read_prompts(path) if path else empty, parse(own_prompts, "own_prompts"))
        if not prompts.prompts:
            raise ValueError("The Prompt Set is empty; choose a kind and switch some of it on, a file, or write "
                             "prompts of your own.")
        asked = [name for name in wanted if name in kinds_of("inanimate" if "inanimate" in kind else "animate")]
        return io.NodeOutput(prompts, list(prompts.templates), _counted(prompts), instruction(asked))


def _prompts_of(kind: str, wanted: Sequence[str], count: int) -> PromptSet:
    """The pack's own prompts of these kinds."""
    if kind == NONE:
        return PromptSet(())
    if kind.startswith(RICH):
        return rich_prompts(kind.removeprefix(RICH), wanted, count)
    left_out = set(KINDS) - set(wanted)
    return bundled(kind, [name for name in BUNDLED[kind] if name not in left_out])


def _counted(prompts: PromptSet) -> str:
    """"2000 prompts: 223 background, 222 action, …"."""
    kinds = [kind for kind, _ in prompts.prompts]
    of_each = ", ".join(f"{kinds.count(kind)} {kind}" for kind in prompts.kinds)
    return f"{len(kinds)} prompt{'s' if len(kinds) > 1 else ''}: {of_each}"


class PersonalizePromptTokens(io.ComfyNode):
    """How a prompt is split, and what learned vectors are near to."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizePromptTokens", display_name="Prompt Tokens", category="personalize/text",
            is_output_node=True,
            description="Shows how the text encoder reads a prompt: every token with its position, weight and role, "
                        "where placeholder, class words and context sit, and the real words nearest to each learned "
                        "vector.",
            search_aliases=["tokenizer", "token count", "nearest words", "inspect embedding"],
            inputs=[
                *_clip_and_prompt("Prompt to look at."),
                io.Int.Input("neighbours", default=5, min=1, max=50,
                             tooltip="How many of the nearest real words are listed for each vector, 1 to 50.")],
            outputs=[
                io.String.Output(display_name="report", tooltip="To read: tokens, roles, nearest words."),
                io.String.Output(display_name="table", tooltip="The tokens with tabs between columns, for "
                                                               "spreadsheets: chunk, position, token, id, weight, "
                                                               "role.")])

    @classmethod
    def fingerprint_inputs(cls, prompt="", **_) -> str:
        """Changes when an embedding file that the prompt names does."""
        return embedding_versions(prompt)

    @classmethod
    def execute(cls, clip, prompt: str, neighbours: int, concept=()) -> io.NodeOutput:
        """Report and table."""
        clip = apply_concepts(clip, concept)
        rows = token_rows(clip, prompt, [each.class_words for each in concept])
        vectors = vectors_in(clip, prompt)
        near = [found for encoder in text_encoders(clip)
                for found in nearest_words(encoder, vectors[encoder.key], neighbours)]
        shown = report(rows, near)
        return io.NodeOutput(shown, table(rows), ui=ui.PreviewText(shown))


class PersonalizeEncodeWithSpans(io.ComfyNode):
    """CLIP Text Encode that remembers where words are."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeEncodeWithSpans", display_name="Encode with Spans", category="personalize/text",
            description="Encodes a prompt exactly as CLIP Text Encode does, and writes into the conditioning where "
                        "placeholders, class words and words of your choice sit, for masks, attention maps and "
                        "orthogonal embeddings.",
            search_aliases=["CLIP Text Encode", "token positions", "prompt"],
            inputs=[
                *_clip_and_prompt("Prompt, as for CLIP Text Encode."),
                words_input("Words of the prompt to remember: red hat, beach. Placeholders and class words are "
                            "remembered anyway.")],
            outputs=[
                io.Conditioning.Output(display_name="conditioning", tooltip="The same as that of CLIP Text Encode, "
                                                                            "with the positions in its options."),
                io.String.Output(display_name="positions", tooltip="The spans to read: name and positions in the "
                                                                   "encoded sequence, start token at 0.")])

    @classmethod
    def fingerprint_inputs(cls, prompt="", **_) -> str:
        """Changes when an embedding file that the prompt names does."""
        return embedding_versions(prompt)

    @classmethod
    def execute(cls, clip, prompt: str, words: str, concept=()) -> io.NodeOutput:
        """CONDITIONING with spans in its options."""
        clip = apply_concepts(clip, concept)
        layout = prompt_tokens(clip, prompt).layout
        wanted = parse_words(words)
        for name in wanted:
            if not layout.find(name):
                raise ValueError(f"The words '{name}' are not in the prompt '{prompt}'; write them as they stand "
                                 "there.")
        layout = layout.remembering([*(each.class_words for each in concept), *wanted])
        conditioning = [_told(cond, options, layout) for cond, options in
                        clip.encode_from_tokens_scheduled(clip.tokenize(prompt))]
        lines = [f"{name}: {', '.join(map(str, positions))}" for name, positions in layout.spans]
        return io.NodeOutput(conditioning, "\n".join(lines))


def _told(cond: Tensor, options: dict, layout: Layout) -> list:
    """An entry of a CONDITIONING with its layout, if the prompt's tokens are what it holds."""
    found = token_count(cond)
    if found in (0, layout.length):
        return [cond, {**options, **layout.options()}]
    notice(f"Encode with Spans does not write into the conditioning where words are: another node has changed how this "
           f"CLIP encodes, and it gives {found} tokens for a prompt of {layout.length}.")
    return [cond, options]


def _clip_and_prompt(tooltip: str) -> list:
    return [
        io.Clip.Input("clip", tooltip="Text encoder of the model, also after Apply Concept."),
        io.String.Input("prompt", default="", multiline=True, dynamic_prompts=True, tooltip=tooltip),
        ConceptType.Input("concept", optional=True, tooltip="A concept to apply first, so that its placeholder is "
                                                            "understood and its class words are found.")]


def _text_files() -> list[str]:
    """Text files of the input folder but for captions beside pictures, the first MOST_FILES that are found."""
    folder = Path(folder_paths.get_input_directory())
    found: list[str] = []
    for root, _, names in os.walk(folder):
        captions = {caption for name in names if is_picture(name) for caption in caption_names(name)}
        found += [Path(root, name).relative_to(folder).as_posix() for name in names
                  if name.lower().endswith(".txt") and name.lower() not in captions]
        if len(found) >= MOST_FILES:
            break
    return sorted(found[:MOST_FILES])


def _own_file(name: str | None) -> Path | None:
    if name in (None, "", NONE):
        return None
    folder = Path(folder_paths.get_input_directory()).resolve()
    path = (folder / name).resolve()
    if folder not in path.parents or not path.is_file():
        raise ValueError(f"There is no text file '{shown_name(name)}' in {folder}; choose one from the list, or put "
                         "it there and refresh the page (key R).")
    return path


NODES: list[type] = [PersonalizePromptSet, PersonalizePromptTokens, PersonalizeEncodeWithSpans]
