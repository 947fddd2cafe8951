"""Training vectors for each cross-attention layer: XTI (Voynov et al. 2023)."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...families.find import unet_of
from ...text.concept import check_layers, initial_vectors
from ...text.vectors import Vectors, WordVectors
from ..batch import Batch
from ..restoring import matching
from .part import AttachedPart, ParamGroup, Side, TrainablePart, TrainingRun


@dataclass(frozen=True)
class PerLayerPart(TrainablePart):
    """Optimises for every subject's placeholder vectors of each cross-attention layer, (layers, n, d) for an encoder.

    lr: learning rate (XTI 5e-3). weight_decay: None for the run's.
    """

    lr: float = 5e-3
    weight_decay: float | None = None

    @property
    def label(self) -> str:
        """For the name of a run."""
        return "per-layer"

    def attach(self, run: TrainingRun) -> AttachedPerLayer:
        """All layers at the concept's vectors or the rows of its initial words. Raises ValueError if the model is no
        U-Net."""
        layers = len(unet_of(run.model).layers)
        parameters = {}
        for subject in run.subjects:
            placeholder, vectors = subject.concept.placeholder, initial_vectors(subject.concept, run.clip)
            check_layers(placeholder, vectors, layers)
            parameters[placeholder] = {key: nn.Parameter(rows.to(run.device))
                                       for key, rows in _for_each(layers, vectors).items()}
        return AttachedPerLayer(self, parameters)


class AttachedPerLayer(AttachedPart):
    """The vectors of one run."""

    touches: frozenset[Side] = frozenset({"text"})

    def __init__(self, settings: PerLayerPart, parameters: Mapping[str, Mapping[str, nn.Parameter]]):
        self.parameters = parameters
        self._words = {name: WordVectors(rows, "layer") for name, rows in parameters.items()}
        self.placeholders = {name: vectors.count for name, vectors in self._words.items()}
        self.groups: Sequence[ParamGroup] = [
            ParamGroup("per-layer embedding", list(self._named().values()), settings.lr, settings.weight_decay)]

    def vectors(self, batch: Batch) -> Vectors:
        """Those that are trained, (layers, n, d)."""
        return self._words

    def learned_vectors(self) -> Vectors:
        """The same, detached."""
        return {name: WordVectors({key: p.detach().clone() for key, p in vectors.items()}, "layer")
                for name, vectors in self._words.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Vectors by placeholder and encoder."""
        return {f"{name}.{key}": p.detach() for (name, key), p in self._keyed().items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state_dict` returned."""
        for (name, key), p in self._keyed().items():
            p.copy_(matching(state, f"{name}.{key}", p.shape))

    def _named(self) -> dict[str, nn.Parameter]:
        return {f"{name}.{key}": p for (name, key), p in self._keyed().items()}

    def _keyed(self) -> dict[tuple[str, str], nn.Parameter]:
        return {(name, key): p for name, by_encoder in self.parameters.items() for key, p in by_encoder.items()}


def _for_each(layers: int, vectors: WordVectors) -> dict[str, Tensor]:
    """(layers, n, d) of vectors that all layers share, or that are for each already."""
    return {key: rows if vectors.axis == "layer" else rows[None].repeat(layers, 1, 1) for key, rows in vectors.items()}
