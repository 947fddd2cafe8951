"""Where words sit in an encoded prompt, carried in the CONDITIONING's options."""
from __future__ import annotations

from typing import Mapping, Sequence

from .encoders import text_encoders
from .tokens import PromptTokenizer, PromptTokens

SPANS = "personalize_spans"
LENGTH = "personalize_length"


def known_placeholders(clip) -> dict[str, int]:
    """Placeholders that Apply Concept taught this CLIP, with the number of vectors of each."""
    rows = getattr(text_encoders(clip)[0].tokenizer, "placeholder_rows", {})
    return {placeholder: len(vectors) for placeholder, vectors in rows.items()}


def find_words(tokenizer: PromptTokenizer, prompt: str, words: str) -> tuple[int, ...]:
    """Positions, in the sequence `prompt` is encoded to, of every place where the tokens of `words` follow each other.

    They are counted as in PromptTokens.spans: chunk · 77 + position; start, end and padding are never part of it. Whole
    tokens are compared, in lower case: "dog" is not found in "dogs" or "hotdog". Works for a CONDITIONING of any node,
    as long as its prompt is known. Empty if `words` are not in the prompt.
    """
    wanted = [token for _, token in _content(tokenizer(words))]
    found = _content(tokenizer(prompt))
    starts = (i for i in range(len(found) - len(wanted) + 1)
              if wanted and all(found[i + j][1] == token for j, token in enumerate(wanted)))
    return tuple(sorted({found[i + j][0] for i in starts for j in range(len(wanted))}))


def spans_of(tokenizer: PromptTokenizer, prompt: str, words: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Positions of every placeholder the tokenizer knows and of all `words`, by name; what is not there is left out."""
    spans = dict(tokenizer(prompt).spans)
    for name in words:
        if name not in spans and (positions := find_words(tokenizer, prompt, name)):
            spans[name] = positions
    return spans


def span_options(spans: Mapping[str, tuple[int, ...]], length: int) -> dict[str, object]:
    """Entries for a CONDITIONING's options: name → positions, and the number of tokens T they are counted in."""
    return {SPANS: dict(spans), LENGTH: length}


def _content(tokens: PromptTokens) -> list[tuple[int, object]]:
    """(position, token) of everything between start and end, chunk after chunk."""
    chunks = tokens.chunks[0][1]
    return [(i * tokens.chunk_length + j, chunk[j][0]) for i, (chunk, end) in enumerate(zip(chunks, tokens.ends))
            for j in range(1, end)]
