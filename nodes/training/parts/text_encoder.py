"""Training the text encoders: all weights of their layers, or a LoRA of them (DreamBooth, Ruiz et al. 2023)."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...text.encoder_weights import adaptable_layers, changeable
from .part import TEXT_WEIGHTS, WEIGHTS, AttachedPart, TrainablePart, TrainingRun
from .weights import AttachedWeights, adapter, differences

NAME = "Text Encoder"


@dataclass(frozen=True)
class TextEncoderPart(TrainablePart):
    """Optimises the CLIP's text encoders (diffusers' DreamBooth: lr 2e-6).

    rank: of a LoRA of every linear layer of attention and MLP, which counts once (alpha = rank); 0 for float32
        differences of every weight and bias of the layers, norms and projections. Tables of words and positions stay:
        a subject's own word is a vector beside them.
    """

    lr: float = 2e-6
    rank: int = 0
    weight_decay: float | None = None
    keeps: ClassVar = (WEIGHTS,)

    @property
    def label(self) -> str:
        """For the name of a run."""
        return "text-lora" if self.rank else "text-encoder"

    def attach(self, run: TrainingRun) -> AttachedPart:
        """Changes that start as the identity. Raises ValueError if all weights are asked for and they are quantised."""
        if not self.rank:
            changes = differences(NAME, changeable(run.clip).items(), run.device, TEXT_WEIGHTS)
            return AttachedWeights("text encoder", self.lr, self.weight_decay, run.clip.patcher, changes, "text")
        changes = {f"{name}.weight": (f"{TEXT_WEIGHTS}{name}",
                                      adapter("LoRA", self.rank, float(self.rank), module, name, run))
                   for name, module in adaptable_layers(run.clip).items()}
        return AttachedWeights("text encoder LoRA", self.lr, self.weight_decay, run.clip.patcher, changes, "text")
