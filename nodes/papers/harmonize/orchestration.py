"""Contextual embedding orchestration: v⊥ in the place of v, in conditionings and in visual tokens."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...text.layout import UNKNOWN, VISUAL, Layout, Piece, layout_in
from ...text.pairs import token_count
from ...text.tokens import prompt_tokens
from ...visual_prompts.tokens import WORD_LIKE, VisualTokens
from .basis import ALL, BasisTokens, basis_tokens
from .orthogonal import orthogonalised, parallel_share, text_basis

Entry = Sequence[Any]  # a CONDITIONING's [tensor (R, T, d), options]


@dataclass(frozen=True)
class Basis:
    """Orthonormal bases (r, d) of one conditioning's R rows, and the tokens that they span.

    tokens: None if it is not known what stands where, so that all of them were taken.
    """

    rows: tuple[Tensor, ...]
    tokens: BasisTokens | None = None

    @property
    def rank(self) -> int:
        """Largest rank of the rows."""
        return max(len(row) for row in self.rows)

    def orthogonalised(self, visual: Tensor, strength: float) -> Tensor:
        """v⊥ (B or R, M, d) of visual tokens (B, M, d); one picture is paired with all rows, one row with all."""
        if strength == 0 or not self.rank:
            return visual
        return torch.stack([orthogonalised(v, row, strength) for v, row in self._paired(visual)])

    def share(self, visual: Tensor) -> float:
        """Share of the squared length of visual tokens (B, M, d) that the text spans, 0 to 1."""
        pairs = self._paired(visual)
        return sum(parallel_share(v, row) for v, row in pairs) / len(pairs)

    def _paired(self, visual: Tensor) -> list[tuple[Tensor, Tensor]]:
        count = max(len(visual), len(self.rows))
        rows = self.rows * (count if len(self.rows) == 1 else 1)
        return list(zip(visual.expand(count, -1, -1), rows, strict=True))


@dataclass(frozen=True)
class BasisChoice:
    """How bases are taken from conditionings.

    words: those that never belong to the basis. which: one of basis.TOKENS_OF. clip, prompt: tell what stands where
    in a conditioning that does not know by itself.
    """

    words: tuple[str, ...]
    which: str
    clip: Any = None
    prompt: str = ""

    def of(self, entry: Entry, visual: Sequence[int]) -> Basis:
        """Basis of a conditioning that holds visual tokens at the positions `visual`. Raises ValueError."""
        tensor, options = entry
        if not tensor.isfinite().all():
            raise ValueError("The conditioning holds values that are not numbers; look at the text encoder, LoRA or "
                             "embedding that it was made with.")
        text = [i for i in range(tensor.shape[1]) if i not in set(visual)]
        layout = self._layout(options, tensor.shape[1], text)
        chosen = None if layout is None else basis_tokens(layout, self.words, self.which)
        positions = text if chosen is None else list(chosen.positions)
        return Basis(tuple(text_basis(row[positions]) for row in tensor), chosen)

    def _layout(self, options: dict, length: int, text: Sequence[int]) -> Layout | None:
        """What stands at each position; None if that is unknown and all of them are wanted."""
        carried = layout_in(options)
        if carried is not None and carried.length == length and not carried.of_kind(UNKNOWN):
            return replace(carried, pieces=tuple(piece if position in text else Piece(VISUAL)
                                                 for position, piece in enumerate(carried.pieces)))
        if carried is not None and carried.length == len(text):  # another node has put the picture after them
            return carried.spread(text, length)
        if self.clip is not None and self.prompt:
            layout = prompt_tokens(self.clip, self.prompt).layout
            if layout.length != len(text):
                raise ValueError(f"prompt has {layout.length} tokens but the conditioning holds {len(text)} of text; "
                                 "write the prompt that it was encoded from, or leave it empty and set basis to "
                                 f"'{ALL}'.")
            return layout.spread(text, length)
        if self.which == ALL:
            return None
        raise ValueError("This conditioning does not say which of its tokens are words; encode the prompt with "
                         f"Encode with Spans, connect clip and write the prompt, or set basis to '{ALL}'.")


def join_bases(bases: Sequence[Basis]) -> Basis:
    """Basis of all that several conditionings span together. Raises ValueError if their numbers of rows differ."""
    counts = {len(basis.rows) for basis in bases} - {1}
    if len(counts) > 1:
        raise ValueError(f"The conditionings have {' and '.join(map(str, sorted(counts)))} rows; orthogonalize to each "
                         "of them by itself.")
    count = max(counts, default=1)
    rows = zip(*(basis.rows * (count if len(basis.rows) == 1 else 1) for basis in bases), strict=True)
    return Basis(tuple(text_basis(torch.cat(parts)) for parts in rows))


def visual_positions(entry: Entry, last_tokens: int) -> tuple[int, ...]:
    """Where a conditioning holds visual tokens: its last ones if a number is given, else those it knows of itself."""
    tensor, options = entry
    length = tensor.shape[1]
    if last_tokens >= length:
        raise ValueError(f"last_tokens is {last_tokens} but the conditioning has only {length} tokens, text included; "
                         "give the number of its visual tokens.")
    if last_tokens:
        return tuple(range(length - last_tokens, length))
    carried = layout_in(options)
    return carried.span(VISUAL) if carried is not None and carried.length == length else ()


def with_replaced(entry: Entry, positions: Sequence[int], vectors: Tensor) -> list:
    """The conditioning with `vectors` (R, M, d) in the place of what stands at `positions`."""
    tensor = entry[0].clone()
    tensor[:, list(positions)] = vectors
    return [tensor, dict(entry[1])]


def with_appended(entry: Entry, vectors: Tensor) -> list:
    """[t; v]: the conditioning with visual tokens (B, M, d) after its text, recorded in its options.

    The text keeps its positions; cross-attention knows no order.
    """
    tensor, options = entry
    (pictures, added, _), (rows, length, _) = vectors.shape, tensor.shape
    count = max(pictures, rows)
    context = torch.cat([tensor.expand(count, -1, -1), vectors.to(tensor).expand(count, -1, -1)], dim=1)
    carried = layout_in(options)
    if carried is None or carried.length != length:
        carried = Layout((Piece(UNKNOWN),) * length)
    visual = (*carried.span(VISUAL), *range(length, length + added))
    spans = {**dict(carried.spans), VISUAL: visual}
    layout = Layout((*carried.pieces, *[Piece(VISUAL)] * added), tuple(spans.items()))
    return [context, {**options, **layout.options()}]


def check_tokens(entry: Entry) -> None:
    """Raises ValueError if a conditioning's tokens are not those of a prompt, each once."""
    tokens = token_count(entry[0])
    if not tokens:
        raise ValueError("The conditioning was zeroed out, so there is nothing to orthogonalize to; connect the prompt "
                         "itself.")
    if tokens < entry[0].shape[1]:
        raise ValueError("The conditioning holds every token twice, as CLIP NegPip encodes prompts, and a picture's "
                         "tokens cannot stand among those; encode the prompt with the CLIP before CLIP NegPip, and use "
                         "the MODEL before it too.")


def check_widths(tokens: VisualTokens, entry: Entry) -> None:
    """Raises ValueError if visual tokens and a conditioning cannot be put together."""
    if tokens.source in WORD_LIKE:
        raise ValueError(f"The visual tokens of {tokens.source} are no part of the text yet: they go through the text "
                         "encoder like words. Connect the conditioning of Encode Prompt with Picture, and nothing to "
                         "visual_tokens.")
    (pictures, _, width), (rows, _, channels) = tokens.vectors.shape, entry[0].shape
    if width != channels:
        raise ValueError(f"The visual tokens of {tokens.source} have a width of {width} but the conditioning's is "
                         f"{channels}; encode the picture for the checkpoint that encodes the prompt.")
    if 1 not in (pictures, rows) and pictures != rows:
        raise ValueError(f"There are visual tokens of {pictures} pictures but the conditioning has {rows} rows; give "
                         "one picture, or as many as rows.")
