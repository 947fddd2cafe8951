"""What a trainable part is: its settings on the wire, and what it becomes in a run."""
from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ...text.tokens import PromptTokens
from ...text.vectors import Vectors
from ..batch import Batch, Stream, Subject

Side = Literal["text", "unet"]
WEIGHTS = ("loras", "weights")  # kind of folder and stem of the file of trained weights
TEXT_WEIGHTS = "text_encoders."  # begins the names of the text encoders' weights in such a file
RUNNING = "personalize_pass"


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
    """A file to save: folder kind of ComfyUI, such as "loras", stem without the step, tensors, metadata of strings.
    whole: in the precision of the tensors; else in half of it."""

    kind: str
    name: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    whole: bool = False


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


@dataclass(frozen=True, eq=False)
class RunningPass:
    """What a part's wrapper of the U-Net finds in transformer_options[RUNNING] during a pass.

    batch: the rows of the micro-batch. stream: whose latents are run. tokens: the prompt of each row.
    """

    batch: Batch
    stream: Stream
    tokens: tuple[PromptTokens, ...]


class TrainablePart:
    """Settings of what is optimised: what the wire `trainable` carries.

    keeps: (kind of folder, stem) of each file that the part has saved beside the embeddings, so that a saved step can
        be told from half of one. A part whose words are not vectors of a CONCEPT has one that carries them to
        inference.
    """

    keeps: ClassVar[tuple[tuple[str, str], ...]] = ()

    @property
    def label(self) -> str:
        """What it adds to the name of a run that nobody named, such as "lora"; "" for the vectors of words."""
        return ""

    def attach(self, run: TrainingRun) -> AttachedPart:
        """Creates the float32 parameters on the run's clones; called before the models are loaded."""
        raise NotImplementedError


class AttachedPart:
    """Parameters of one run. A part overrides what it has; as it stands it gives no words and changes no model.

    groups: what the optimiser changes.
    touches: sides whose outputs depend on the parameters, and which a reference must bypass.
    placeholders: words in prompts that the part gives vectors for → number n of vectors.
    """

    groups: Sequence[ParamGroup]
    touches: frozenset[Side] = frozenset()
    placeholders: Mapping[str, int] = {}

    def vectors(self, batch: Batch) -> Vectors:
        """Vectors by placeholder, (n, d), or with an axis of rows where each row of the batch has its own."""
        return {}

    def learned_vectors(self) -> Vectors:
        """Vectors by placeholder, (n, d), detached: what a CONCEPT keeps."""
        return {}

    def shown_vectors(self) -> Vectors:
        """Vectors by placeholder, (n, d), detached: what each of `placeholders` stands for in a preview."""
        return self.learned_vectors()

    def installed(self) -> AbstractContextManager:
        """Hooks or blocks that are active while the context is open, and undone after it."""
        return contextlib.nullcontext()

    def bypassed(self) -> AbstractContextManager:
        """The model as if this part were not there, while the context is open."""
        return contextlib.nullcontext()

    def after_step(self, step: int) -> None:
        """Called after the optimiser's step `step` (from 1)."""

    def state_dict(self) -> dict[str, Tensor]:
        """Everything needed to resume, parameters included."""
        raise NotImplementedError

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state_dict` returned."""
        raise NotImplementedError

    def weight_names(self) -> Collection[str]:
        """Names of `weights`, which no other part may have."""
        return ()

    def weights(self) -> dict[str, Tensor]:
        """What a stock LoRA loader applies (LORA_MODEL)."""
        return {}

    def files(self) -> Sequence[Artifact]:
        """What to save of the present state, beside the embeddings and the LoRA file."""
        return ()
