"""Tokens of one conditioning whose attention is wanted."""
from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..text.pairs import keys_of


@dataclass(frozen=True)
class TokenGroups:
    """Tokens of one conditioning whose attention is wanted, in n groups such as words.

    positions: per group the positions of its tokens in the conditioning, counted over all chunks, start token at 0.
    length: tokens T of the conditioning.
    pairs: whether it holds each of them twice, as text.pairs says; both count as one.
    """

    positions: tuple[tuple[int, ...], ...]
    length: int
    pairs: bool = False

    def keys(self, context: Tensor) -> Tensor:
        """(rows, T or copies of T, C) from a context that other patches may have taken apart already."""
        return keys_of(context) if self.pairs else context

    def in_copies(self, keys: int) -> list[list[int]]:
        """Positions per group among this number of keys: ComfyUI repeats a context so that it fits longer ones."""
        copies = max(keys // self.length, 1) if keys % self.length == 0 else 1
        return [[copy * self.length + position for position in group for copy in range(copies)]
                for group in self.positions]
