"""Orthogonalize Visual Embedding in the graph."""
from __future__ import annotations

import textwrap

from comfy_api.latest import io, ui

from ...inputs import check_prompt_again, prompt_again_inputs, strength_input, words_input
from ...text.embedding_versions import embedding_versions
from ...text.layout import parse_words
from ...types import VisualTokensType
from ...visual_prompts.tokens import VisualTokens
from .basis import TOKENS_OF, WORDS
from .orchestration import BasisChoice
from .orthogonalize import orthogonalize

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
                words_input("Words of the prompt for the subject: dog. They stay out of the basis, as do articles and "
                            "learned placeholders, as in the paper."),
                strength_input("Share of the common part that is taken out, 0 to 1; 0 is off. Paper: 1."),
                io.Combo.Input("basis", options=list(TOKENS_OF), default=WORDS,
                               tooltip="Which tokens of the prompt span the text's subspace: its words; with them the "
                                       "end token; or also start and padding. The paper says: all text tokens but "
                                       "those of the subject."),
                io.Int.Input("last_tokens", default=0, min=0, max=100000, advanced=True,
                             tooltip="How many of the conditioning's last tokens are visual, where no node of this "
                                     "pack put them there: 729 after Apply Style Model with Redux. 0: it knows by "
                                     "itself, or visual_tokens is connected."),
                VisualTokensType.Input("visual_tokens", optional=True,
                                       tooltip="The picture's tokens, from Encode Picture (IP-Adapter). They are put "
                                               "after the text, [t; v⊥]. Not for BLIP-Diffusion and ELITE, whose "
                                               "tokens the conditioning holds."),
                io.Conditioning.Input("basis_conditioning", optional=True,
                                      tooltip="Orthogonalize to this text in place of the prompt, for example to a "
                                              "caption of the picture, which helps less (the paper's Fig. 7a)."),
                *prompt_again_inputs(),
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
    def execute(cls, conditioning, words: str, strength: float, basis: str, last_tokens: int,
                visual_tokens: VisualTokens | None = None, basis_conditioning=None, clip=None,
                prompt: str = "") -> io.NodeOutput:
        """CONDITIONING, PERSONALIZE_VISUAL_TOKENS, report, rank."""
        if visual_tokens is not None and last_tokens:
            raise ValueError("visual_tokens is connected and last_tokens is set; the picture's tokens can come from "
                             "one place only: disconnect the one or set the other to 0.")
        check_prompt_again(clip, prompt)
        choice = BasisChoice(parse_words(words), basis, clip, prompt)
        found = orthogonalize(conditioning, choice, strength, last_tokens, visual_tokens, basis_conditioning)
        return io.NodeOutput(found.conditioning, found.tokens, found.report, found.rank,
                             ui=ui.PreviewText(_on_the_node(found.report)))


def _on_the_node(report: str) -> str:
    """The report in lines that a node shows whole, for it does not wrap them."""
    return "\n".join(textwrap.fill(line, LINE) for line in report.split("\n"))


NODES: list[type] = [PersonalizeOrthogonalize]
