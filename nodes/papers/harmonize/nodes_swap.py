"""Self-Attention Swap and Branch Latent in the graph."""
from __future__ import annotations

from typing import get_args

from comfy_api.latest import io

from ...attention.branch import Branch, Noise
from ...attention.mask_inputs import mask_method_inputs
from ...attention.masks import MaskMethod
from ...attention.words import words_of
from ...inputs import advanced, check_percents, percent_inputs, prompt_again_inputs, strength_input, words_input
from ...recording.record import Record
from ...text.embedding_versions import embedding_versions
from ...text.layout import parse_words
from ...types import RecordType
from .nodes_orthogonal import CATEGORY
from .swap import with_swap
from .swap_settings import BOTH, SWAP_LAYERS, AttentionMask, Halves, SwapSettings

NAME = "Self-Attention Swap"
SUBJECT, EVERYWHERE = "subject", "everywhere"
COARSE, ALL_LAYERS = "coarse layers", "all layers"
SO_FAR, NEWEST = "all steps so far", "newest step"
GUIDED, UNGUIDED = "guided", "unguided"


class PersonalizeSelfAttentionSwap(io.ComfyNode):
    """Lets the picture look at what the reference alone would give."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeSelfAttentionSwap", display_name=NAME, category=CATEGORY,
            description="Samples a second picture from the visual tokens alone beside yours, and where the subject is, "
                        "lets your picture's self-attention take keys and values from it: the subject keeps its looks "
                        "in a new pose (Eqs. 4 and 5 of Harmonizing Visual and Textual Embeddings). For the model "
                        "input of a sampler.",
            search_aliases=["harmonize", "mutual self-attention", "identity", "consistent subject",
                            "consistent character", "same face", "masactrl"],
            inputs=[
                io.Model.Input("model", tooltip="Model of the sampler, SD1.x, SD2.x or SDXL."),
                io.Conditioning.Input("positive",
                                      tooltip="The picture's tokens without the prompt, not orthogonalized: visual "
                                              "tokens with an empty or neutral text. Paper: the visual-only "
                                              "embedding."),
                words_input("Words of the sampler's prompt whose attention shows where the subject is: <my-dog>, or "
                            "visual tokens. Empty: every name that the conditioning knows. Paper: the subject's "
                            "token."),
                *percent_inputs(0.2, of_start="Paper: 0.2, after 20 of 100 steps.", of_end="Paper: 1."),
                strength_input("How much of the swapped attention is taken inside the mask, 0 to 1; 0 is off. Paper: "
                               "1."),
                io.Combo.Input("swap_layers", options=list(SWAP_LAYERS), default="all", advanced=True,
                               tooltip="Self-attention layers that are swapped: all; those of the decoder; of its "
                                       "finer levels; or of the encoder. Paper: the self-attention layers."),
                io.Combo.Input("where", options=[SUBJECT, EVERYWHERE], default=SUBJECT,
                               tooltip="subject: inside the subject's mask, Eq. 5. everywhere: in the whole picture, "
                                       "Eq. 4. Paper: subject."),
                *advanced(*mask_method_inputs("Paper: a fixed one that it does not name.")),
                io.Combo.Input("mask_layers", options=[COARSE, ALL_LAYERS], default=COARSE, advanced=True,
                               tooltip="Whose attention gives the mask: the coarsest layers with at least 16 pixels on "
                                       "the longer side, or all."),
                io.Combo.Input("mask_steps", options=[SO_FAR, NEWEST], default=SO_FAR, advanced=True,
                               tooltip="Which steps' attention gives the mask: the mean of all so far, or the newest "
                                       "alone."),
                io.Combo.Input("halves", options=list(get_args(Halves)), default=BOTH, advanced=True,
                               tooltip="both: the negative side takes keys and values from the branch's negative side. "
                                       "conditional: only the positive side swaps."),
                io.Combo.Input("noise", options=list(get_args(Noise)), default="shared", advanced=True,
                               tooltip="shared: the branch starts from the picture's noise. own: from other noise, "
                                       "which follows from the sampler's seed."),
                io.Combo.Input("guidance", options=[GUIDED, UNGUIDED], default=GUIDED, advanced=True,
                               tooltip="guided: the branch has the sampler's guidance and needs a negative. unguided: "
                                       "it follows its positive alone, which takes about a quarter less time in all."),
                io.Conditioning.Input("negative", optional=True,
                                      tooltip="Negative of the branch, such as an empty prompt; with guidance only."),
                io.Mask.Input("mask", optional=True,
                              tooltip="Where the subject shall be, in place of the mask from attention."),
                *prompt_again_inputs(),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For the sampler. Use one swap per model."),
                RecordType.Output(display_name="record",
                                  tooltip="What it saw while sampling: for Branch Latent, Show Masks and Show "
                                          "Attention."),
            ])

    @classmethod
    def fingerprint_inputs(cls, prompt="", **_) -> str:
        """Changes when an embedding file that the prompt names does."""
        return embedding_versions(prompt)

    @classmethod
    def execute(cls, model, positive, words: str, start_percent: float, end_percent: float, strength: float,
                swap_layers: str, where: str, mask_method: MaskMethod, threshold: float, mask_layers: str,
                mask_steps: str, halves: Halves, noise: Noise, guidance: str, negative=None, mask=None, clip=None,
                prompt: str = "") -> io.NodeOutput:
        """MODEL, PERSONALIZE_RECORD."""
        check_percents(start_percent, end_percent)
        if guidance == GUIDED and negative is None:
            raise ValueError("guidance is 'guided' but negative is not connected; connect the branch's negative, such "
                             "as an empty prompt, or choose 'unguided'.")
        for name, conditioning in (("positive", positive), ("negative", negative or [])):
            if any("hooks" in options for _, options in conditioning):
                raise ValueError(f"{name} carries hooks, such as a scheduled LoRA, which the branch cannot run; "
                                 "connect it without them.")
        if mask is None and where == SUBJECT:
            wanted = words_of(parse_words(words), clip, prompt)
            mask = AttentionMask(wanted, mask_method, threshold, mask_layers == COARSE, mask_steps == NEWEST)
        elif mask is not None:
            mask = mask.reshape(-1, *mask.shape[-2:])
        settings = SwapSettings(swap_layers, (start_percent, end_percent), strength, halves, mask)
        record = Record(NAME, every_step=mask_steps == NEWEST)
        branch = Branch(positive, negative if guidance == GUIDED else None, noise)
        return io.NodeOutput(with_swap(model, branch, settings, record), record)


class PersonalizeBranchLatent(io.ComfyNode):
    """The second picture that a swap sampled."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeBranchLatent", display_name="Branch Latent", category=CATEGORY,
            description="The picture that Self-Attention Swap sampled from the visual tokens alone.",
            search_aliases=["visual only", "second branch", "self-attention swap"],
            inputs=[
                RecordType.Input("record", tooltip="From Self-Attention Swap."),
                io.Latent.Input("latent", tooltip="From the sampler that uses the swap's model, so that this node "
                                                  "waits for it."),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="For VAE Decode.")])

    @classmethod
    def execute(cls, record: Record, latent: dict) -> io.NodeOutput:
        """LATENT of the branch."""
        branch = record.sampling(latent["samples"]).branch_latent
        if branch is None:
            raise ValueError(f"The record of {record.made_by} holds no second branch; connect the record of {NAME}, "
                             "with a strength above 0, and sample a step between its start_percent and end_percent.")
        return io.NodeOutput({"samples": branch})


NODES: list[type] = [PersonalizeSelfAttentionSwap, PersonalizeBranchLatent]
