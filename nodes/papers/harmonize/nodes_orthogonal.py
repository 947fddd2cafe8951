"""Orthogonalize Visual Embedding in the graph."""
from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace

from comfy_api.latest import io, ui

from ...attention.words import parse_words
from ...text.embedding_versions import embedding_versions
from ...types import VisualTokensType
from ...visual_prompts.tokens import VisualTokens
from .basis import TOKENS_OF, WORDS
from .orchestration import (
    Basis,
    BasisChoice,
    Entry,
    check_fits,
    check_tokens,
    joined,
    visual_positions,
    with_appended,
    with_replaced,
)

CATEGORY = "personalize/harmonize"
LINE = 50  # characters of a line on the node as wide as the page makes it


class PersonalizeOrthogonalize(io.ComfyNode):
    """The part of a visual embedding that does not argue with the prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeOrthogonalize", display_name="Orthogonalize Visual Embedding", category=CATEGORY,
            description="Takes out of a picture's tokens what the prompt's words say too, so that the pose of the "
                        "reference no longer argues with the pose in the prompt (Eq. 3 of Harmonizing Visual and "
                        "Textual Embeddings).",
            search_aliases=["harmonize", "orthogonal visual embedding", "orchestration", "pose bias", "gram schmidt",
                            "redux", "ip-adapter"],
            inputs=[
                io.Conditioning.Input("conditioning",
                                      tooltip="The prompt, best from Encode with Spans; or a conditioning that already "
                                              "holds visual tokens, for example after Apply Style Model (Redux)."),
                io.String.Input("subject", default="",
                                tooltip="Words for the subject in the prompt, separated by commas: dog. They stay out "
                                        "of the basis, as do articles and learned placeholders, as in the paper."),
                io.Float.Input("strength", default=1.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of the common part that is taken out, 0 to 1. 0: nothing changes. Paper: "
                                       "1."),
                io.Combo.Input("basis", options=list(TOKENS_OF), default=WORDS,
                               tooltip="Which tokens of the prompt span the text's subspace: its words; with them the "
                                       "end token; or also start and padding. The paper says: all text tokens but "
                                       "those of the subject."),
                io.Int.Input("last_tokens", default=0, min=0, max=100000,
                             tooltip="How many of the conditioning's last tokens are visual, where no node of this "
                                     "pack put them there: 729 after Apply Style Model with Redux. 0: it knows by "
                                     "itself, or visual_tokens is connected."),
                VisualTokensType.Input("visual_tokens", optional=True,
                                       tooltip="The picture's tokens, from Encode Picture (IP-Adapter). They are put "
                                               "after the text, [t; v⊥]. Not for BLIP-Diffusion and ELITE, whose "
                                               "tokens the conditioning holds."),
                io.Conditioning.Input("caption", optional=True,
                                      tooltip="Orthogonalize to this text in place of the prompt, for example to a "
                                              "caption of the picture, which helps less (the paper's Fig. 7a)."),
                io.Clip.Input("clip", optional=True,
                              tooltip="Text encoder, together with prompt: only for a conditioning that was not "
                                      "encoded by this pack and does not say where its words are."),
                io.String.Input("prompt", default="", optional=True, multiline=True, dynamic_prompts=True,
                                tooltip="The text the conditioning (or the caption) was encoded from; only together "
                                        "with clip."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="conditioning",
                                       tooltip="The prompt with the orthogonal tokens v⊥: positive of a sampler."),
                VisualTokensType.Output(display_name="visual_tokens",
                                        tooltip="v⊥ alone, for nodes that carry visual tokens in by themselves such as "
                                                "Apply IP-Adapter."),
                io.String.Output(display_name="report", tooltip="The words used and left out, the rank of the basis "
                                                                "and how much of the picture's tokens was in it."),
                io.Int.Output(display_name="rank", tooltip="Dimensions of the text's subspace; of several "
                                                           "conditionings the largest."),
            ])

    @classmethod
    def fingerprint_inputs(cls, prompt="", **_) -> str:
        """Changes when an embedding file that the prompt names does."""
        return embedding_versions(prompt)

    @classmethod
    def execute(cls, conditioning, subject: str, strength: float, basis: str, last_tokens: int, visual_tokens=None,
                caption=None, clip=None, prompt: str = "") -> io.NodeOutput:
        """CONDITIONING, VISUAL_TOKENS, report, rank."""
        if visual_tokens is not None and last_tokens:
            raise ValueError("visual_tokens is connected and last_tokens is set; the picture's tokens can come from "
                             "one place only: disconnect the one or set the other to 0.")
        for entry in (*conditioning, *(caption or ())):
            check_tokens(entry)
        choice = BasisChoice(parse_words(subject), basis, clip, prompt)
        shared = joined([choice.of(entry, visual_positions(entry, 0)) for entry in caption]) if caption else None
        harmonized, found, bases, lines = [], [], [], []
        for entry in conditioning:
            positions = visual_positions(entry, last_tokens)
            visual = _visual(entry, positions, visual_tokens)
            its_basis = shared or choice.of(entry, positions)
            orthogonal = its_basis.orthogonalised(visual.vectors, strength)
            if visual_tokens is not None:
                harmonized.append(with_appended(entry, orthogonal))
            else:
                unchanged = orthogonal is visual.vectors
                harmonized.append(entry if unchanged else with_replaced(entry, positions, orthogonal))
            found.append(visual)
            bases.append(its_basis)
            lines.append(_report(its_basis, its_basis.share(visual.vectors), strength))
        report = "\n".join(lines if len(lines) == 1 else [f"{i}. {line}" for i, line in enumerate(lines, 1)])
        of_all = joined(bases) if visual_tokens is not None else bases[0]
        tokens = replace(found[0], vectors=of_all.orthogonalised(found[0].vectors, strength).float().cpu())
        return io.NodeOutput(harmonized, tokens, report, max(basis.rank for basis in bases),
                             ui=ui.PreviewText(_on_the_node(report)))


def _visual(entry: Entry, positions: Sequence[int], tokens: VisualTokens | None) -> VisualTokens:
    if tokens is not None:
        check_fits(tokens, entry)
        return tokens
    if not positions:
        raise ValueError("The conditioning holds no visual tokens; connect visual_tokens, or say in last_tokens how "
                         "many of its last tokens are visual.")
    return VisualTokens(entry[0][:, list(positions)], "a conditioning")


def _report(basis: Basis, share: float, strength: float) -> str:
    tokens = basis.tokens
    if not basis.rank:
        lines = ["No word is left to orthogonalize to, so the visual tokens are unchanged."]
    else:
        lines = [(f"Rank {basis.rank} of width {basis.rows[0].shape[1]}; it holds {share:.1%} of the picture's tokens, "
                  f"of which {strength:.0%} is taken out.")]
    if basis.rank == basis.rows[0].shape[1]:
        lines.append(
            "The text spans the whole space: of the picture nothing is left. Write less, or choose fewer tokens at "
            "basis."
        )
    if tokens is not None:
        lines.append(f"Words: {' '.join(tokens.used) or 'none'}.")
        if tokens.excluded:
            lines.append(f"Left out: {' '.join(tokens.excluded)}.")
        if tokens.repetitions > 1:
            lines.append(f"The prompt is repeated {tokens.repetitions} times; it counts once.")
        if tokens.absent:
            lines.append(f"Not in the prompt: {', '.join(tokens.absent)}.")
    else:
        lines.append("All tokens of the text.")
    return " ".join(lines)


def _on_the_node(report: str) -> str:
    """The report in lines that a node shows whole, for it does not wrap them."""
    return "\n".join(textwrap.fill(line, LINE) for line in report.split("\n"))


NODES: list[type] = [PersonalizeOrthogonalize]
