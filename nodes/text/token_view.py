"""What a prompt looks like to a text encoder: its tokens, and the real words nearest to learned vectors."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .apply import known_placeholders, vector_of
from .encoder_kinds import TextEncoder
from .encoders import text_encoders
from .layout import END, LEARNED, PADDING, START, TEMPLATE, Piece
from .tokens import FixedVector, PromptTokenizer, Slot, prompt_tokens

_ROWS_AT_ONCE = 8192
_AROUND = (START, END, PADDING, TEMPLATE)  # roles of what is no part of the prompt


@dataclass(frozen=True)
class TokenRow:
    """One position of an encoded prompt.

    position: in the sequence that is encoded, 0 … T − 1. token: as a person reads it. id: in the vocabulary, or None
    for a vector. role: "start", "end", "padding", "template", "class", "context", or the placeholder it belongs to.
    """

    chunk: int
    position: int
    token: str
    id: int | None
    weight: float
    role: str


@dataclass(frozen=True)
class Neighbours:
    """Real words nearest to a learned vector.

    words: (word, cosine in −1…1), nearest first. norm: length of the vector. usual_norm: median length of the table's
    rows.
    """

    encoder: str
    vector: str
    words: tuple[tuple[str, float], ...]
    norm: float
    usual_norm: float


def token_rows(clip, prompt: str, class_words: Sequence[str] = ()) -> list[TokenRow]:
    """Every position of `prompt` as `clip`, with all placeholders it was taught, encodes it."""
    counts = known_placeholders(clip)
    tokenizer = PromptTokenizer(clip, counts)
    tokens = tokenizer(prompt)
    class_positions = {position for words in class_words for position in tokens.layout.find(words)}
    rows = []
    places = zip(tokenizer.sequence_of(tokens), tokens.layout.pieces, strict=True)
    for position, ((chunk, (token, weight)), piece) in enumerate(places):
        role = piece.text if isinstance(token, Slot) else "class" if position in class_positions else _role(piece)
        rows.append(TokenRow(chunk, position, _readable(token, piece, counts), piece.id, weight, role))
    return rows


def vectors_in(clip, prompt: str) -> dict[str, dict[str, Tensor]]:
    """Encoder key → name → (d,) of every vector in `prompt`: of placeholders, once each, and of embedding files."""
    found: dict[str, dict[str, Tensor]] = {}
    counts = known_placeholders(clip)
    tokens, values = prompt_tokens(clip, prompt), clip.tokenize(prompt)
    for encoder, (key, chunks) in zip(text_encoders(clip), tokens.chunks):
        named: dict[str, Tensor] = {}
        for chunk, row in zip(chunks, values[key]):
            for (token, _), (value, _) in zip(chunk, row):
                vector = vector_of(value)
                if vector is not None:
                    files = sum(name.startswith("file") for name in named)
                    named[_numbered(token, counts) if isinstance(token, Slot) else f"file vector {files + 1}"] = vector
        found[encoder.key] = named
    return found


def nearest_words(encoder: TextEncoder, vectors: Mapping[str, Tensor], count: int) -> list[Neighbours]:
    """The `count` rows of the encoder's table with the largest cosine to each vector (d,), special tokens left out."""
    if not vectors:
        return []
    table = encoder.table
    wanted = torch.nn.functional.normalize(torch.stack([v.float().cpu() for v in vectors.values()]), dim=-1)
    cosines, norms = [], []
    for rows in table.split(_ROWS_AT_ONCE):
        rows = rows.to("cpu", torch.float32)
        norms.append(rows.norm(dim=-1))
        cosines.append(wanted @ torch.nn.functional.normalize(rows, dim=-1).T)
    cosine = torch.cat(cosines, dim=1)
    cosine[:, [i for i in range(cosine.shape[1]) if not encoder.is_word(i)]] = -torch.inf
    best = cosine.topk(count, dim=1)
    usual = float(torch.cat(norms).median())
    return [Neighbours(encoder.key, name, tuple((_shown(encoder.piece(int(i))), float(c)) for i, c in zip(ids, values)),
                       float(vector.norm()), usual)
            for (name, vector), ids, values in zip(vectors.items(), best.indices, best.values)]


def _role(piece: Piece) -> str:
    return piece.kind if piece.kind in _AROUND else "context"


def _readable(token: int | Slot | FixedVector, piece: Piece, counts: Mapping[str, int]) -> str:
    if isinstance(token, Slot):
        return _numbered(token, counts)
    if piece.kind == LEARNED:
        return "(file vector)"
    return _shown(piece)


def _shown(piece: Piece) -> str:
    """The piece's text; one that a word goes on after ends with "-"."""
    return f"{piece.text}-" if piece.goes_on else piece.text


def _numbered(slot: Slot, counts: Mapping[str, int]) -> str:
    return f"{slot.placeholder} {slot.index + 1}/{counts[slot.placeholder]}"


def report(rows: list[TokenRow], neighbours: list[Neighbours]) -> str:
    """The rows and neighbours as lines to read; padding is counted, not listed."""
    lines = []
    for chunk in dict.fromkeys(row.chunk for row in rows):
        here = [row for row in rows if row.chunk == chunk]
        listed = [row for row in here if row.role != PADDING]
        used = sum(row.role not in _AROUND for row in here)
        lines.append(f"Chunk {chunk + 1}: {used} of {used + len(here) - len(listed)} tokens used")
        lines += [f"{row.position:>5}  {row.token:<24} {row.weight:<5g} {row.role}" for row in listed]
    for role, positions in _positions(rows).items():
        lines.append(f"{role}: {', '.join(map(str, positions))}")
    for found in neighbours:
        words = ", ".join(f"{word} {cosine:.2f}" for word, cosine in found.words)
        lines.append(f"{found.vector} in {found.encoder}, length {found.norm:.2f} (words {found.usual_norm:.2f}), "
                     f"near to: {words}")
    return "\n".join(lines)


def table(rows: list[TokenRow]) -> str:
    """All rows with a heading, columns separated by tabs."""
    lines = ["chunk\tposition\ttoken\tid\tweight\trole"]
    for row in rows:
        token_id = "" if row.id is None else row.id
        lines.append(f"{row.chunk + 1}\t{row.position}\t{row.token}\t{token_id}\t{row.weight:g}\t{row.role}")
    return "\n".join(lines)


def _positions(rows: list[TokenRow]) -> dict[str, list[int]]:
    roles: dict[str, list[int]] = {}
    for row in rows:
        if row.role not in _AROUND:
            roles.setdefault(row.role, []).append(row.position)
    return roles
