"""Training the vectors of placeholders: Textual Inversion, with CoRe's rescaling."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...text.concept import plain_vectors
from ...text.vectors import Vectors, WordVectors
from ..batch import Batch
from ..restoring import matching
from .part import AttachedPart, ParamGroup, Side, TrainablePart, TrainingRun

ONE_MEANING = "one vector for all would forget; use Train Per-Layer"


def rescale(vectors: Tensor, norms: Tensor) -> Tensor:
    """CoRe Eq. 6, per vector: v ← v / ‖v‖ · norm. vectors: (n, d). norms: (n,)."""
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny) * norms[:, None]


@dataclass(frozen=True)
class EmbeddingPart(TrainablePart):
    """Optimises the vectors of every subject's placeholder, one float32 parameter per encoder.

    lr: learning rate (CoRe 5e-3). weight_decay: None for the run's.
    rescaled: first and last step after which every vector is set back to the norm that it had before the first (Eq. 6
        throughout a window; CoRe 121, 180). None: never.
    """

    lr: float = 5e-3
    rescaled: tuple[int, int] | None = None
    weight_decay: float | None = None

    def attach(self, run: TrainingRun) -> AttachedEmbedding:
        """One parameter per placeholder and encoder, at the concept's vectors or the rows of its initial words."""
        vectors = {subject.concept.placeholder: {
            key: nn.Parameter(rows.to(run.device))
            for key, rows in plain_vectors(subject.concept, run.clip, ONE_MEANING).items()} for subject in run.subjects}
        return AttachedEmbedding(self, vectors)


class AttachedEmbedding(AttachedPart):
    """The vectors of one run."""

    touches: frozenset[Side] = frozenset({"text"})

    def __init__(self, settings: EmbeddingPart, parameters: Mapping[str, Mapping[str, nn.Parameter]]):
        self.settings, self.parameters = settings, parameters
        self._words = {name: WordVectors(rows) for name, rows in parameters.items()}
        self.placeholders = {name: vectors.count for name, vectors in self._words.items()}
        self.norms: dict[str, Tensor] = {}
        self.groups: Sequence[ParamGroup] = [
            ParamGroup("embedding", list(self._named().values()), settings.lr, settings.weight_decay)]
        self.after_step(0)

    def vectors(self, batch: Batch) -> Vectors:
        """Those that are trained, (n, d)."""
        return self._words

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Eq. 6 inside the window."""
        if self.settings.rescaled is None:
            return
        first, last = self.settings.rescaled
        if step == first - 1:
            self.norms = {name: p.norm(dim=-1).clone() for name, p in self._named().items()}
        if first <= step <= last:
            for name, p in self._named().items():
                p.copy_(rescale(p, self.norms[name]))

    def state_dict(self) -> dict[str, Tensor]:
        """Vectors and the norms of the window."""
        return ({f"vectors.{name}": p.detach() for name, p in self._named().items()}
                | {f"norms.{name}": norm for name, norm in self.norms.items()})

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state_dict` returned."""
        for name, p in self._named().items():
            p.copy_(matching(state, f"vectors.{name}", p.shape))
            if f"norms.{name}" in state:
                self.norms[name] = matching(state, f"norms.{name}", p.shape[:1]).to(p)

    def learned_vectors(self) -> Vectors:
        """Those that are trained, (n, d), detached."""
        return {name: WordVectors({key: p.detach().clone() for key, p in vectors.items()})
                for name, vectors in self._words.items()}

    def _named(self) -> dict[str, nn.Parameter]:
        return {f"{name}.{key}": p for name, by_encoder in self.parameters.items() for key, p in by_encoder.items()}
