"""The two interfaces of training.

A *loss term* says what it needs (encodings, denoiser passes, attention maps), gets it, and returns a scalar.
A *trainable part* says what the optimiser may change and how prompts are encoded with it.
Requests are values: two terms that ask for the same thing get the same result.
"""
from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Mapping, Protocol, Sequence, runtime_checkable

import torch
from torch import Tensor

from ..attention.layers import AttentionLayer
from ..text.concept import Concept
from ..text.encode import Encoded
from ..text.tokens import PromptTokenizer, PromptTokens

Stream = Literal["subject", "prior", "reference"]


# ---------------------------------------------------------------------------------------------- pictures
@dataclass(frozen=True)
class Picture:
    """One picture of a subject, ready to be encoded.

    variants: (V, H, W, 3) float32 in 0…1, at least one; augmented versions of the same picture.
    masks: (V, H, W) float32 in 0…1, 1 on the subject, or None.
    caption: prompt that describes the picture and holds the placeholder, or "" for the recipe's prompts.
    name: file name or "picture 3", for messages.
    """

    variants: Tensor
    masks: Tensor | None = None
    caption: str = ""
    name: str = ""
    NOT_IN_KEY = ("name",)


@dataclass(frozen=True)
class Subject:
    """A concept and its pictures; one link of the SUBJECT chain."""

    concept: Concept
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Row:
    """What one row of a step sees: picture `picture`, variant `variant` of subject `subject`, with `prompt`."""

    subject: int
    picture: int
    variant: int
    prompt: str


@dataclass(frozen=True)
class Noised:
    """Latents of one stream at their timesteps.

    clean, noise, noisy: (B, C, h, w) in the model's latent space; noisy is what the denoiser gets.
    sigma: (B,) noise level, as ComfyUI's model_sampling counts it.
    masks: (B, 1, h, w) in 0…1 or None.
    """

    clean: Tensor
    noise: Tensor
    noisy: Tensor
    sigma: Tensor
    masks: Tensor | None = None

    def slice(self, rows: slice) -> Noised:
        """The rows of a micro-batch."""
        cut = [None if t is None else t[rows] for t in (self.clean, self.noise, self.noisy, self.sigma, self.masks)]
        return Noised(*cut)


@dataclass(frozen=True)
class Batch:
    """One step, or a micro-batch of it: for each stream its rows and latents; "subject" is always there."""

    step: int
    subjects: tuple[Subject, ...]
    rows: Mapping[Stream, tuple[Row, ...]]
    latents: Mapping[Stream, Noised]

    @property
    def size(self) -> int:
        """Rows B of the subject stream."""
        return len(self.rows["subject"])

    def concept(self, row: Row) -> Concept:
        """The concept that a row shows."""
        return self.subjects[row.subject].concept

    def slice(self, rows: slice) -> Batch:
        """The same rows of every stream."""
        return replace(self, rows={name: value[rows] for name, value in self.rows.items()},
                       latents={name: value.slice(rows) for name, value in self.latents.items()})


# ---------------------------------------------------------------------------------------------- A. loss terms
@dataclass(frozen=True)
class Encode:
    """Ask for the text encoding of one prompt shared by all rows, or of one prompt per row.

    grad: whether the loss needs gradients through this encoding.
    original: encode with frozen, original weights and without trainable parts: a reference.
    """

    tokens: tuple[PromptTokens, ...]
    grad: bool = True
    original: bool = False


@dataclass(frozen=True)
class Pass:
    """Ask for a run of the denoiser on a stream's noisy latents with an encoding.

    until: last cross-attention layer whose maps are needed; the pass stops there and predicts nothing.
    original: run without trainable parts.
    """

    context: Encode
    latents: Stream = "subject"
    grad: bool = True
    until: AttentionLayer | None = None
    original: bool = False


@dataclass(frozen=True)
class Maps:
    """Ask for the softmax cross-attention of a pass, mean over heads, float32.

    layers: layers to record.
    keep: "mean" gives (rows, T) per layer, the mean over pixels; "pixels" gives (rows, pixels, n) per layer.
    positions: for "pixels": the n token positions kept, per row or one tuple for all rows.
    keys: take the keys of this encoding with the pass's queries, in place of the pass's own.
    beside: not of the pass itself but of the run that a part makes beside it for the reference pictures (ViCo).
    """

    of: Pass
    layers: tuple[AttentionLayer, ...]
    keep: Literal["mean", "pixels"] = "mean"
    positions: tuple[tuple[int, ...], ...] | None = None
    keys: Encode | None = None
    beside: bool = False


@dataclass(frozen=True)
class Needs:
    """What a loss term asks for, under names of its own choosing."""

    encodes: Mapping[str, Encode] = field(default_factory=dict)
    passes: Mapping[str, Pass] = field(default_factory=dict)
    maps: Mapping[str, Maps] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """What a loss term gets, under the names it asked with.

    encodes: name → Encoded (rows as in the request).
    passes: name → predicted clean latents (B, C, h, w), or None where the pass stopped early.
    maps: name → tuple of one tensor per layer, in the order of the request.
    """

    encodes: Mapping[str, Encoded]
    passes: Mapping[str, Tensor | None]
    maps: Mapping[str, tuple[Tensor, ...]]


class LossTerm(Protocol):
    """One term of the training objective.

    name: shown on the chart. weight: multiplies the loss. window: first and last step (from 1) at which it acts.
    """

    name: str
    weight: float
    window: tuple[int, int]

    def needs(self, batch: Batch, text: TextSide, rng: torch.Generator) -> Needs:
        """What this step needs. `rng` starts the same for every term of a step and for its micro-batches."""

    def __call__(self, got: Results, batch: Batch, model: DenoiserSide) -> Tensor:
        """The unweighted float32 scalar, mean over the batch's rows."""


@dataclass(frozen=True)
class TextSide:
    """What a loss term may know of the text encoders and of the U-Net's layers when it states its needs."""

    tokenizer: PromptTokenizer
    layers: tuple[AttentionLayer, ...]


@dataclass(frozen=True)
class DenoiserSide:
    """What a loss term may know of the denoiser when it computes.

    sampling: ComfyUI's model_sampling object.
    """

    sampling: Any


# ---------------------------------------------------------------------------------------------- B. trainable parts
@dataclass(frozen=True)
class ParamGroup:
    """Parameters that share a learning rate; `name` is shown on the chart.

    weight_decay: AdamW's decoupled decay, or None for the run's.
    """

    name: str
    params: Sequence[torch.nn.Parameter]
    lr: float
    weight_decay: float | None = None


@dataclass(frozen=True)
class Artifact:
    """A file to save: folder kind of ComfyUI, such as "loras", stem without the step, tensors, metadata of strings."""

    kind: str
    name: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)


WEIGHTS = ("loras", "weights")  # kind of folder and stem of the file of trained weights
Vectors = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class TrainingRun:
    """What a part may attach itself to.

    model: ModelPatcher clone that is being trained on; weight wrappers may be added to it.
    clip: CLIP clone that is being trained on.
    subjects: all subjects of the run.
    device: where parameters live.
    seed: of the run; a part draws its initial values from it.
    """

    model: Any
    clip: Any
    subjects: tuple[Subject, ...]
    device: torch.device
    seed: int


@runtime_checkable
class ChecksSubjects(Protocol):
    """A loss term of which what it draws at random can be looked at beforehand."""

    def check(self, subjects: Sequence[Subject], text: TextSide) -> None:
        """Raises ValueError with one sentence if a later step could fail."""


class TrainablePart(Protocol):
    """Settings of what is optimised: what the TRAINABLE wire carries.

    A part may have `keeps`: (kind of folder, stem) of each file that it has saved beside the embeddings, so that a saved
    step can be told from half of one.
    """

    def attach(self, run: TrainingRun) -> AttachedPart:
        """Creates the float32 parameters on the run's clones; called before the models are loaded."""


class AttachedPart(Protocol):
    """Parameters of one run.

    groups: what the optimiser changes.
    touches: sides whose outputs depend on the parameters, and which a reference must bypass.
    placeholders: words in prompts that the part gives vectors for → number n of vectors.
    """

    groups: Sequence[ParamGroup]
    placeholders: Mapping[str, int]
    touches: frozenset[Literal["text", "unet"]]

    def vectors(self, batch: Batch) -> Vectors:
        """Placeholder → encoder key → (n, d), or (B, n, d) where each row of the batch has its own."""

    def installed(self) -> AbstractContextManager:
        """Hooks or blocks that are active while the context is open, and undone after it."""

    def bypassed(self) -> AbstractContextManager:
        """The model as if this part were not there, while the context is open."""

    def after_step(self, step: int) -> None:
        """Called after the optimiser's step `step` (from 1)."""

    def state_dict(self) -> dict[str, Tensor]:
        """Everything needed to resume, parameters included."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state_dict` returned."""

    def learned_vectors(self) -> Vectors:
        """Placeholder → encoder key → (n, d): what a CONCEPT keeps; empty if the part learns none."""

    def weights(self) -> dict[str, Tensor]:
        """What a stock LoRA loader applies (LORA_MODEL); empty if the part changes no weights."""


@runtime_checkable
class KeepsFiles(Protocol):
    """An attached part whose result is neither a vector nor a change of weights and goes into files of its own."""

    def files(self) -> Sequence[Artifact]:
        """What to save of the present state, beside the embeddings and the LoRA file."""


RUNNING = "personalize_pass"


@dataclass(frozen=True, eq=False)
class RunningPass:
    """What a part's wrapper of the U-Net finds in transformer_options[RUNNING] during a pass.

    batch: the rows of the micro-batch. stream: whose latents are run. tokens: the prompt of each row.
    """

    batch: Batch
    stream: Stream
    tokens: tuple[PromptTokens, ...]


class Recipe(Protocol):
    """Which picture with which prompt a step sees."""

    def rows(self, subjects: Sequence[Subject], step: int, size: int, seed: int) -> Mapping[Stream, tuple[Row, ...]]:
        """`size` rows of the subject stream for step `step` (from 1), and rows of other streams if wanted."""
