"""The vectors that a word stands for in each text encoder."""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Axis = Literal["row", "layer"]


@dataclass(frozen=True, eq=False)
class WordVectors(Mapping[str, Tensor]):
    """Encoder key ("clip_l", "t5xxl", …) → vectors (n, d) of one word, or with an axis in front of n.

    axis: what it counts: "row" where each row of a batch has vectors of its own, (rows, n, d); "layer" where each
        cross-attention layer has, (layers, n, d); None if there is none.
    Raises ValueError if a tensor has other axes.
    """

    by_encoder: Mapping[str, Tensor] = field(default_factory=dict)
    axis: Axis | None = None

    def __post_init__(self):
        axes = ("n", "d") if self.axis is None else (self.axis, "n", "d")
        for key, tensor in self.by_encoder.items():
            if tensor.ndim != len(axes):
                raise ValueError(f"The vectors for {key} have the shape {tuple(tensor.shape)} but should have the axes "
                                 f"({', '.join(axes)}).")

    def __getitem__(self, key: str) -> Tensor:
        return self.by_encoder[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_encoder)

    def __len__(self) -> int:
        return len(self.by_encoder)

    @property
    def count(self) -> int:
        """Vectors n of the word; 0 if there is no encoder."""
        return max((tensor.shape[-2] for tensor in self.values()), default=0)

    def at(self, index: int) -> WordVectors:
        """Those of one row or layer; all where no axis is in front."""
        if self.axis is None:
            return self
        return WordVectors({key: tensor[index] for key, tensor in self.items()})

    def mean(self) -> WordVectors:
        """The mean over rows or layers; all where no axis is in front."""
        if self.axis is None:
            return self
        return WordVectors({key: mean_of(tensor) for key, tensor in self.items()})


Vectors = Mapping[str, WordVectors]  # by placeholder


def mean_of(tensors: Tensor | Sequence[Tensor]) -> Tensor:
    """Mean over the first axis, or of tensors of one shape; of equal ones it is that one to the bit."""
    stacked = tensors if isinstance(tensors, Tensor) else torch.stack(list(tensors))
    return stacked[0] + (stacked - stacked[0]).mean(0)
