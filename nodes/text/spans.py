"""Where words sit in an encoded prompt, carried in the CONDITIONING's options."""
from __future__ import annotations

from typing import Mapping, Sequence

from .encoders import text_encoders
from .tokens import PromptTokenizer, PromptTokens

SPANS = "personalize_spans"
LENGTH = "personalize_length"
TOKENS = "personalize_tokens"
VISUAL = "visual tokens"  # name of the positions that hold a picture's tokens; no placeholder has a space
# What TOKENS holds where there is no word; the tokenizer splits words at "<".
START, END, PADDING, LEARNED = "<start>", "<end>", "<padding>", "<learned vector>"


def known_placeholders(clip) -> dict[str, int]:
    """Placeholders that Apply Concept taught this CLIP, with the number of vectors of each."""
    rows = getattr(text_encoders(clip)[0].tokenizer, "placeholder_rows", {})
    return {placeholder: len(vectors) for placeholder, vectors in rows.items()}


def find_words(tokenizer: PromptTokenizer, prompt: str, words: str) -> tuple[int, ...]:
    """Positions, in the sequence `prompt` is encoded to, of every place where the tokens of `words` follow each other.

    They are counted as in PromptTokens.spans: chunk · 77 + position; start, end and padding are never part of it. Whole
    words are compared, in lower case: "dog" is not found in "dogs" or "hotdog". Works for a CONDITIONING of any node,
    as long as its prompt is known. Empty if `words` are not in the prompt.
    """
    wanted = [token for _, token in _content(tokenizer(words))]
    found = _content(tokenizer(prompt))
    vocabulary = tokenizer.encoders[0].tokenizer.inv_vocab
    goes_on = [isinstance(token, int) and not vocabulary[token].endswith("</w>") for _, token in found]
    starts = (i for i in range(len(found) - len(wanted) + 1)
              if wanted and not (i and goes_on[i - 1]) and all(found[i + j][1] == t for j, t in enumerate(wanted)))
    return tuple(sorted({found[i + j][0] for i in starts for j in range(len(wanted))}))


def spans_of(tokenizer: PromptTokenizer, prompt: str, words: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Positions of every placeholder the tokenizer knows and of all `words`, by name; what is not there is left out."""
    spans = dict(tokenizer(prompt).spans)
    for name in words:
        if name not in spans and (positions := find_words(tokenizer, prompt, name)):
            spans[name] = positions
    return spans


def span_options(spans: Mapping[str, tuple[int, ...]], length: int, tokens: Sequence[str] = ()) -> dict[str, object]:
    """Entries for a CONDITIONING's options: name → positions, and the number of tokens T they are counted in.

    tokens: what stands at each of the T positions, if that is known: a token's text as Prompt Tokens shows it (a piece
    that a word goes on after ends with "-"), START, END, PADDING, LEARNED or VISUAL.
    """
    return {SPANS: dict(spans), LENGTH: length, **({TOKENS: tuple(tokens)} if tokens else {})}


def _content(tokens: PromptTokens) -> list[tuple[int, object]]:
    """(position, token) of everything between start and end, chunk after chunk."""
    chunks = tokens.chunks[0][1]
    return [(i * tokens.chunk_length + j, chunk[j][0]) for i, (chunk, end) in enumerate(zip(chunks, tokens.ends))
            for j in range(1, end)]
