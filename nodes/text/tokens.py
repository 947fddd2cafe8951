"""Prompts as tokens: where each placeholder, the subject and the context sit."""
from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Mapping, Sequence

import torch
from torch import Tensor

from .apply import clip_with_vectors
from .encoders import TextEncoder, text_encoders

FILLED = "subject"
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
    ends: position of the first end-of-text token in each chunk, counted within the chunk.
    spans: name → positions in the encoded sequence (chunk · chunk length + position). Every placeholder is a span
        under its own name; what filled a template's slot is the span "subject".
    """

    text: str
    chunks: tuple[tuple[str, tuple[Chunk, ...]], ...]
    ends: tuple[int, ...]
    spans: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def chunk_length(self) -> int:
        """Tokens in a chunk, start, end and padding included."""
        return len(self.chunks[0][1][0])

    @property
    def length(self) -> int:
        """Tokens T of the encoded sequence."""
        return len(self.ends) * self.chunk_length

    def span(self, name: str) -> tuple[int, ...]:
        """Positions of `name`; empty if the prompt does not hold it."""
        return dict(self.spans).get(name, ())

    @property
    def placeholders(self) -> frozenset[str]:
        """Names of the placeholders in the prompt."""
        return frozenset(token.placeholder for _, chunks in self.chunks for chunk in chunks
                         for token, _ in chunk if isinstance(token, Slot))

    def context(self) -> tuple[tuple[int, ...], ...]:
        """Per chunk: positions of start, every word and first end token, without the subject and without padding."""
        subject, size = set(self.span(FILLED)), self.chunk_length
        return tuple(tuple(p for p in range(i * size, i * size + end + 1) if p not in subject)
                     for i, end in enumerate(self.ends))

    def with_token(self, position: int, token_id: int) -> PromptTokens:
        """The same prompt with `token_id` at `position` of the sequence, in every encoder."""
        chunk, offset = divmod(position, self.chunk_length)
        changed = []
        for key, chunks in self.chunks:
            row = list(chunks[chunk])
            row[offset] = (token_id, row[offset][1])
            changed.append((key, chunks[:chunk] + (tuple(row),) + chunks[chunk + 1:]))
        return replace(self, chunks=tuple(changed))


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
        spans = dict(filled.spans)
        places = spans.pop(_FILLER, ())
        if words in self.counts:
            spans[words] = places = tuple(sorted((*spans.get(words, ()), *places)))
        return replace(filled, text=template.replace("{}", words), chunks=_filled(filled.chunks, stands_for),
                       spans=(*spans.items(), (FILLED, places)))

    def _tokenize(self, prompt: str, counts: tuple[tuple[str, int], ...]) -> PromptTokens:
        names = [name for name, _ in counts]
        markers = {name: {e.key: _marker(index, count, e) for e in self.encoders}
                   for index, (name, count) in enumerate(counts)}
        split = clip_with_vectors(self.clip, markers).tokenize(prompt)
        chunks = tuple((e.token_key, tuple(tuple((_read(token, names), float(weight)) for token, weight in chunk)
                                           for chunk in split[e.token_key])) for e in self.encoders)
        first = self.encoders[0]
        layout = chunks[0][1]
        ends = tuple(_first_end(chunk, first.tokenizer.end_token) for chunk in layout)
        return PromptTokens(prompt, chunks, ends, _spans(layout, names))


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


def _filled(chunks, stands_for: Sequence[int | Slot]):
    def swap(token):
        return stands_for[token.index] if isinstance(token, Slot) and token.placeholder == _FILLER else token

    return tuple((key, tuple(tuple((swap(token), weight) for token, weight in chunk) for chunk in rows))
                 for key, rows in chunks)


def _first_end(chunk: Chunk, end_token: int) -> int:
    return next(i for i, (token, _) in enumerate(chunk) if i and token == end_token)


def _spans(layout: tuple[Chunk, ...], names: list[str]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    size = len(layout[0])
    found: dict[str, list[int]] = {name: [] for name in names}
    for i, chunk in enumerate(layout):
        for j, (token, _) in enumerate(chunk):
            if isinstance(token, Slot):
                found[token.placeholder].append(i * size + j)
    return tuple((name, tuple(positions)) for name, positions in found.items() if positions)
