"""Prompts as tokens: where each placeholder, the subject and the context sit."""
from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Mapping, Sequence

import torch
from torch import Tensor

from .apply import clip_with_vectors, known_placeholders
from .encoders import TextEncoder, text_encoders
from .layout import FILLED, Layout

REMEMBERED_PROMPTS = 1024
_FILLER = "<personalize-filler>"


@dataclass(frozen=True)
class Slot:
    """Stands in a prompt for vector `index` (0 … n − 1) of `placeholder`."""

    placeholder: str
    index: int


@dataclass(frozen=True, eq=False)
class FixedVector:
    """A vector (d,) that stands in the prompt as it is: of an embedding file, or of a concept the CLIP knows."""

    row: Tensor

    def __eq__(self, other):
        return isinstance(other, FixedVector) and torch.equal(self.row, other.row)

    def __hash__(self):
        return hash(tuple(self.row.tolist()))


Token = tuple["int | Slot | FixedVector", float]
Chunk = tuple[Token, ...]


@dataclass(frozen=True)
class PromptTokens:
    """A prompt split by ComfyUI's tokenizers; compared and hashed by value.

    text: the prompt.
    chunks: token key ("l", "g", "h") → chunks of (token id, Slot or FixedVector; weight), 77 a chunk.
    layout: what stands at each position of the encoded sequence. Every placeholder is a span under its own name; what
        filled a template's slot is the span "subject".
    """

    text: str
    chunks: tuple[tuple[str, tuple[Chunk, ...]], ...]
    layout: Layout

    def __hash__(self):
        return hash(self.text)

    @property
    def placeholders(self) -> frozenset[str]:
        """Names of the placeholders in the prompt."""
        return frozenset(token.placeholder for _, chunks in self.chunks for chunk in chunks
                         for token, _ in chunk if isinstance(token, Slot))


class PromptTokenizer:
    """Splits prompts for one CLIP.

    counts: placeholder → number of vectors it stands for.
    """

    def __init__(self, clip, counts: Mapping[str, int]):
        self.clip = clip
        self.encoders = text_encoders(clip)
        self.counts = dict(counts)
        self._tokenize = functools.lru_cache(REMEMBERED_PROMPTS)(self._tokenize)

    def __call__(self, prompt: str) -> PromptTokens:
        """Tokens of `prompt`, placeholders as Slots. Prompt weights such as (word:1.2) are kept."""
        return self._tokenize(prompt, tuple(self.counts.items()))

    def fill(self, template: str, words: str) -> PromptTokens:
        """Tokens of `template` with its one {} filled by `words`, a placeholder or ordinary words.

        The filled positions are the span "subject". Raises ValueError if the template has not exactly one {}.
        """
        if template.count("{}") != 1:
            raise ValueError(f"Prompt template '{template}' has {template.count('{}')} slots but needs exactly one "
                             "{} where the subject goes.")
        stands_for = [Slot(words, i) for i in range(self.counts[words])] if words in self.counts else (
            self.encoders[0].word_ids(words))
        filled = self._tokenize(template.replace("{}", _FILLER), (*self.counts.items(), (_FILLER, len(stands_for))))
        tokens = self.placed(template.replace("{}", words), _filled(filled.chunks, stands_for))
        places = tokens.layout.span(words) or filled.layout.span(_FILLER)
        return replace(tokens, layout=replace(tokens.layout, spans=(*tokens.layout.spans, (FILLED, places))))

    def placed(self, text: str, chunks: tuple[tuple[str, tuple[Chunk, ...]], ...]) -> PromptTokens:
        """Chunks of a prompt with the layout of what the encoders make of them."""
        encoder, (_, first) = self.encoders[0], chunks[0]
        pieces = encoder.pieces([[_meaning(token) for token, _ in chunk] for chunk in first])
        spans: dict[str, tuple[int, ...]] = {}
        for position, (token, _) in enumerate(entry for chunk in first for entry in chunk):
            if isinstance(token, Slot):
                spans[token.placeholder] = (*spans.get(token.placeholder, ()), position)
        return PromptTokens(text, chunks, Layout(pieces, tuple(spans.items())))

    def _tokenize(self, prompt: str, counts: tuple[tuple[str, int], ...]) -> PromptTokens:
        names = [name for name, _ in counts]
        markers = {name: {e.key: _marker(index, count, e) for e in self.encoders}
                   for index, (name, count) in enumerate(counts)}
        split = clip_with_vectors(self.clip, markers).tokenize(prompt)
        chunks = tuple((e.token_key, tuple(tuple((_read(token, names), float(weight)) for token, weight in chunk)
                                           for chunk in split[e.token_key])) for e in self.encoders)
        return self.placed(prompt, chunks)


def prompt_tokens(clip, prompt: str) -> PromptTokens:
    """Tokens of `prompt` as `clip` encodes it, with all the words that it was taught."""
    return PromptTokenizer(clip, known_placeholders(clip))(prompt)


def comfy_tokens(tokens: PromptTokens, encoders: tuple[TextEncoder, ...],
                 vectors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, list]:
    """What `CLIP.encode_from_tokens` takes: Slots replaced by rows of vectors[placeholder][encoder key] (n, d)."""
    keys = {e.token_key: e.key for e in encoders}

    def value(token, key):
        if isinstance(token, Slot):
            return vectors[token.placeholder][keys[key]][token.index]
        return token.row if isinstance(token, FixedVector) else token

    return {key: [[(value(token, key), weight) for token, weight in chunk] for chunk in chunks]
            for key, chunks in tokens.chunks}


def _marker(index: int, count: int, encoder: TextEncoder) -> Tensor:
    """Rows (count, d) that no learned vector can equal and that say which Slot they stand for."""
    marker = torch.full((count, encoder.width), torch.inf)
    marker[:, 1] = index
    marker[:, 2] = torch.arange(count)
    return marker


def _read(token, names: list[str]) -> int | Slot | FixedVector:
    if not isinstance(token, Tensor):
        return int(token)
    return Slot(names[int(token[1])], int(token[2])) if torch.isinf(token[0]) else FixedVector(token.detach().clone())


def _meaning(token: int | Slot | FixedVector) -> int | str:
    """What `TextEncoder.pieces` takes: an id, or a text in the place of a vector."""
    if isinstance(token, int):
        return token
    return token.placeholder if isinstance(token, Slot) else ""


def _filled(chunks, stands_for: Sequence[int | Slot]):
    def swap(token):
        return stands_for[token.index] if isinstance(token, Slot) and token.placeholder == _FILLER else token

    return tuple((key, tuple(tuple((swap(token), weight) for token, weight in chunk) for chunk in rows))
                 for key, rows in chunks)
