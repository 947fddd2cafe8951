"""Prompts of which some words are hidden: RandomMask of Diverse Context's Eq. 4."""
from __future__ import annotations

from collections.abc import Container, Sequence

import torch

from ...text.layout import LEARNED, WORD, Layout, Piece
from ...text.tokens import Chunks, PromptTokenizer, PromptTokens, Slot, entries

MASK = "<personalize-mask>"  # stands in prompts for the mask embedding


def hideable(tokens: PromptTokens, known: Container[int | None]) -> tuple[int, ...]:
    """Positions of words whose number is in `known`. Learned vectors, start, end, padding and what the encoder itself
    puts around a prompt are none."""
    numbers = ((place, tokens.layout.pieces[place].id) for place in tokens.layout.of_kind(WORD))
    return tuple(place for place, number in numbers if number is not None and number in known)


def draw_positions(words: Sequence[int], share: float, rng: torch.Generator) -> tuple[int, ...]:
    """Of these positions those that are hidden, each with the probability `share`; drawn again until there is one.

    Raises ValueError if there is no word to hide.
    """
    if not words:
        raise ValueError("a prompt has no word that can be hidden")
    while True:
        drawn = torch.rand(len(words), generator=rng)
        chosen = tuple(position for position, number in zip(words, drawn.tolist()) if number < share)
        if chosen:
            return chosen


def hidden(tokens: PromptTokens) -> tuple[int, ...]:
    """Positions of a masked prompt at which the mask embedding stands."""
    return tokens.layout.span(MASK)


def hidden_words(tokens: PromptTokens) -> tuple[int, ...]:
    """The vocabulary's numbers of the words that are hidden there: y of Eq. 5."""
    return tuple(tokens.layout.pieces[position].id for position in hidden(tokens))  # ty: ignore[invalid-explicit-return]


def masked(tokens: PromptTokens, positions: Sequence[int], tokenizer: PromptTokenizer) -> PromptTokens:
    """The prompt with the mask embedding at these positions, in every encoder that reads the same tokens there. Its
    layout remembers what is hidden."""
    chunks = dict(tokens.chunks)
    start = 0
    for encoder in tokenizer.sequence:
        own = chunks[encoder.token_key]
        rows = len(entries(encoder, own))
        places = [position - start + _cut(own, rows) for position in positions if start <= position < start + rows]
        start += rows
        for key, each in chunks.items():
            if _counts(each) == _counts(own):
                chunks[key] = _with_masks(each, places)
    pieces = list(tokens.layout.pieces)
    for position in positions:
        pieces[position] = Piece(LEARNED, MASK, pieces[position].id)
    spans = (*tokens.layout.spans, (MASK, tuple(positions)))
    return PromptTokens(tokens.text, tuple(chunks.items()), Layout(tuple(pieces), spans))


def _cut(chunks: Chunks, rows: int) -> int:
    return sum(_counts(chunks)) - rows


def _counts(chunks: Chunks) -> list[int]:
    return [len(chunk) for chunk in chunks]


def _with_masks(chunks: Chunks, places: Sequence[int]) -> Chunks:
    hidden, number, found = set(places), 0, []
    for chunk in chunks:
        found.append(tuple((Slot(MASK, 0), weight) if place in hidden else (token, weight)
                           for place, (token, weight) in enumerate(chunk, start=number)))
        number += len(chunk)
    return tuple(found)
