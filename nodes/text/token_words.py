"""Words among the tokens of a conditioning, given as `span_options` writes them."""
from __future__ import annotations

import re
from typing import Mapping, Sequence

from .spans import END, PADDING, START, VISUAL

_NO_WORDS = frozenset({START, END, PADDING, VISUAL})
_CLIP_WORD = re.compile(r"'(?:s|t|re|ve|m|ll|d)|[^\W\d_]+|\d|[^\s\w]+|_")

Word = tuple[str, tuple[int, ...]]


def words_among(tokens: Sequence[str]) -> list[Word]:
    """(word, its positions) of every word, pieces of one word put together; LEARNED for a learned vector."""
    words: list[Word] = []
    goes_on = False
    for position, text in enumerate(tokens):
        if text in _NO_WORDS:
            continue
        piece = text.endswith("-") and any(letter.isalnum() for letter in text)
        part = text[:-1] if piece else text
        if goes_on:
            word, positions = words.pop()
            part, places = word + part, (*positions, position)
        else:
            places = (position,)
        words.append((part, places))
        goes_on = piece
    return words


def places_of(name: str, words: Sequence[Word]) -> set[int]:
    """Indices in `words` of all words of every place where those of `name` follow each other, whatever its capitals."""
    texts, wanted = [text for text, _ in words], _CLIP_WORD.findall(name.lower())
    size = len(wanted)
    return {start + i for start in range(len(texts) - size + 1) if size and texts[start:start + size] == wanted
            for i in range(size)}


def positions_of(name: str, spans: Mapping[str, tuple[int, ...]], tokens: Sequence[str]) -> tuple[int, ...]:
    """Positions of a span of that name, whatever its capitals, else of its words among the tokens; empty if neither."""
    alike = [each for each in spans if spans[each] and each.casefold() == name.casefold()]
    if spans.get(name) or alike:
        return tuple(spans.get(name) or spans[alike[0]])
    return find_among(name, tokens)


def find_among(name: str, tokens: Sequence[str]) -> tuple[int, ...]:
    """Positions of every place where `name` stands among the tokens; empty if it does not."""
    words = words_among(tokens)
    return tuple(sorted(position for i in places_of(name, words) for position in words[i][1]))
