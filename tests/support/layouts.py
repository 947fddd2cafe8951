"""Layouts of prompts, written and read in short for tests."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from personalize.nodes.text.layout import END, LEARNED, PADDING, START, UNKNOWN, VISUAL, WORD, Layout, Piece, layout_in

KINDS = (START, END, PADDING, LEARNED, VISUAL)


def of_spans(spans: Mapping[str, tuple[int, ...]], length: int = 77) -> Layout:
    """Of a prompt of which only the places of some words are known."""
    return Layout((Piece(UNKNOWN),) * length, tuple(spans.items()))


def of_tokens(tokens: Sequence[str]) -> Layout:
    """Of kinds and words; a piece that a word goes on after ends with "-"."""
    return Layout(tuple(_piece(token) for token in tokens))


def spans_in(options: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return dict(layout_in(options).spans)


def tokens_in(options: Mapping[str, Any]) -> tuple[str, ...]:
    """What `of_tokens` takes."""
    return tuple(piece.kind if piece.kind in KINDS else piece.text + "-" * piece.goes_on
                 for piece in layout_in(options).pieces)


def with_spans(options: Mapping[str, Any], spans: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    return {**options, **replace(layout_in(options), spans=tuple(spans.items())).options()}


def _piece(token: str) -> Piece:
    if token in KINDS:
        return Piece(token)
    goes_on = token.endswith("-") and token != "-"
    return Piece(WORD, token.removesuffix("-") if goes_on else token, goes_on=goes_on)
