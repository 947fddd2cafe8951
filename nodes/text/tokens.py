"""Prompts as tokens: where each placeholder, the subject and the context sit."""
from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .apply import clip_with_vectors, known_placeholders, vector_of
from .encoder_kinds import ClipEncoder, TextEncoder
from .encoders import in_sequence, text_encoders
from .layout import FILLED, LEARNED, WORD, Layout, joined
from .placeholders import filled

REMEMBERED_PROMPTS = 1024
_FILLER = "<personalize-filler>"


@dataclass(frozen=True)
class Slot:
    """Stands in a prompt for vector `index` (0 … n − 1) of `placeholder`."""

    placeholder: str
    index: int


@dataclass(frozen=True)
class Slots:
    """What a CLIP is taught in the place of vectors (n, d), so that a prompt's tokens are Slots."""

    placeholder: str
    count: int

    @property
    def shape(self) -> tuple[int, int]:
        """As of a tensor with a row for each Slot."""
        return self.count, 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Slot:
        return Slot(self.placeholder, range(self.count)[index])


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
Chunks = tuple[Chunk, ...]


@dataclass(frozen=True)
class PromptTokens:
    """A prompt split by ComfyUI's tokenizers; compared and hashed by value.

    text: the prompt.
    chunks: token key ("l", "g", "t5xxl") → chunks of (token id, Slot or FixedVector; weight); of CLIP 77 a chunk.
    layout: what stands at each position of the conditioning. Every placeholder is a span under its own name; what
        filled a template's slot is the span "subject".
    """

    text: str
    chunks: tuple[tuple[str, Chunks], ...]
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
        self.sequence = in_sequence(clip, self.encoders)
        self.counts = dict(counts)
        self._tokenize = functools.lru_cache(REMEMBERED_PROMPTS)(self._tokenize)
        self.fill = functools.lru_cache(REMEMBERED_PROMPTS)(self.fill)

    @property
    def chunked(self) -> bool:
        """Whether prompts come in CLIP's chunks, of which shorter prompts are repeated beside longer ones."""
        return all(isinstance(encoder, ClipEncoder) for encoder in self.encoders)

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
        text = template.replace("{}", words)
        if words in self.counts:
            slots = [Slot(words, index) for index in range(self.counts[words])]
            marked = self._with_filler(template, len(slots))
            tokens = self.placed(text, tuple((key, _swapped(chunks, slots)) for key, chunks in marked.chunks))
            return _with_subject(tokens, tokens.layout.span(words))
        parts = {encoder.token_key: self._filled_with_words(encoder, template, words) for encoder in self.encoders}
        tokens = self.placed(text, tuple((key, chunks) for key, (chunks, _) in parts.items()))
        positions: list[int] = []
        start = 0
        for encoder in self.sequence:
            chunks, places = parts[encoder.token_key]
            positions += [start + place for place in places]
            start += len(entries(encoder, chunks))
        return _with_subject(tokens, tuple(positions))

    def placed(self, text: str, chunks: tuple[tuple[str, Chunks], ...]) -> PromptTokens:
        """Chunks of a prompt with the layout of what the encoders make of them."""
        return PromptTokens(text, chunks, joined([_layout(encoder, dict(chunks)[encoder.token_key])
                                                  for encoder in self.sequence]))

    def sequence_of(self, tokens: PromptTokens) -> list[tuple[int, Token]]:
        """(number of its chunk, token) at each position of the conditioning."""
        found: list[tuple[int, Token]] = []
        for encoder in self.sequence:
            own, before = entries(encoder, dict(tokens.chunks)[encoder.token_key]), found[-1][0] + 1 if found else 0
            found += [(before + number, token) for number, token in own]
        return found

    def _filled_with_words(self, encoder: TextEncoder, template: str, words: str) -> tuple[Chunks, tuple[int, ...]]:
        """One encoder's chunks of a template with ordinary words, and their positions in what comes out of it."""
        if isinstance(encoder, ClipEncoder):  # parted into chunks as a learned word is
            ids = encoder.word_ids(words)
            marked = dict(self._with_filler(template, len(ids)).chunks)[encoder.token_key]
            return _swapped(marked, ids), _layout(encoder, marked).span(_FILLER)
        tokens = self._tokenize(filled(template, _literally(words)), tuple(self.counts.items()))
        chunks, marked = (dict(each.chunks)[encoder.token_key] for each in (tokens, self._with_filler(template, 1)))
        return chunks, _what_filled(template, _layout(encoder, chunks), _layout(encoder, marked))

    def _with_filler(self, template: str, count: int) -> PromptTokens:
        return self._tokenize(template.replace("{}", _FILLER), (*self.counts.items(), (_FILLER, count)))

    def _tokenize(self, prompt: str, counts: tuple[tuple[str, int], ...]) -> PromptTokens:
        slots = {name: {encoder.key: Slots(name, count) for encoder in self.encoders} for name, count in counts}
        split = clip_with_vectors(self.clip, slots).tokenize(prompt)
        chunks = tuple((e.token_key, tuple(tuple((_read(token), float(weight)) for token, weight in chunk)
                                           for chunk in split[e.token_key])) for e in self.encoders)
        return self.placed(prompt, chunks)


def prompt_tokens(clip, prompt: str) -> PromptTokens:
    """Tokens of `prompt` as `clip` encodes it, with all the words that it was taught."""
    return PromptTokenizer(clip, known_placeholders(clip))(prompt)


def entries(encoder: TextEncoder, chunks: Chunks) -> list[tuple[int, Token]]:
    """(number of its chunk, token) at each position that comes out of an encoder."""
    whole = [(number, token) for number, chunk in enumerate(chunks) for token in chunk]
    return whole[encoder.cut(_meanings(chunks)):]


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


def _read(token: Any) -> int | Slot | FixedVector:
    if isinstance(token, Slot):
        return token
    vector = vector_of(token)
    return int(token) if vector is None else FixedVector(vector.detach().clone())


def _meanings(chunks: Chunks) -> list[list[int | str]]:
    """What a TextEncoder takes: ids, and a text in the place of a vector."""
    return [[token if isinstance(token, int) else token.placeholder if isinstance(token, Slot) else ""
             for token, _ in chunk] for chunk in chunks]


def _literally(words: str) -> str:
    """The words with brackets that are no prompt weights."""
    return words.replace("(", "\\(").replace(")", "\\)")


def _swapped(chunks: Chunks, others: Sequence[int | Slot]) -> Chunks:
    """The chunks with these in the place of the filler's Slots."""
    def swap(token):
        return others[token.index] if isinstance(token, Slot) and token.placeholder == _FILLER else token

    return tuple(tuple((swap(token), weight) for token, weight in chunk) for chunk in chunks)


def _what_filled(template: str, ours: Layout, marked: Layout) -> tuple[int, ...]:
    """Positions of what stands in a layout where `marked`, else the same prompt, has the filler.

    Raises ValueError if the words around it are split otherwise.
    """
    places, others = ours.of_kind(WORD, LEARNED), marked.of_kind(WORD, LEARNED)
    before = others.index(marked.span(_FILLER)[0])
    after = len(places) - (len(others) - before - 1)
    around = [ours.pieces[place].id for place in (*places[:before], *places[after:])]
    if around != [marked.pieces[place].id for place in (*others[:before], *others[before + 1:])]:
        raise ValueError(f"The words beside the slot of '{template}' are split otherwise when it is filled; write a "
                         "space before and after the {}.")
    return places[before:after]


def _layout(encoder: TextEncoder, chunks: Chunks) -> Layout:
    """Of what one encoder makes of its chunks."""
    spans: dict[str, tuple[int, ...]] = {}
    for position, (_, (token, _)) in enumerate(entries(encoder, chunks)):
        if isinstance(token, Slot):
            spans[token.placeholder] = (*spans.get(token.placeholder, ()), position)
    meanings = _meanings(chunks)
    return Layout(encoder.pieces(meanings)[encoder.cut(meanings):], tuple(spans.items()))


def _with_subject(tokens: PromptTokens, positions: tuple[int, ...]) -> PromptTokens:
    return replace(tokens, layout=replace(tokens.layout, spans=(*tokens.layout.spans, (FILLED, positions))))
