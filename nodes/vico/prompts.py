"""Where the subject's word is in the prompts of a sampling run."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Collection, Mapping, Sequence

from ..notice import notice
from ..text.pairs import token_count
from ..text.spans import END, LEARNED, LENGTH, SPANS, TOKENS, known_placeholders, spans_of
from ..text.token_view import token_rows, token_texts
from ..text.token_words import positions_of
from ..text.tokens import PromptTokenizer


@dataclass(frozen=True)
class Layout:
    """What stands where in an encoded prompt: name → positions of its words, and the text of every token, as
    `text.spans` describes them; tokens are empty if they are not known."""

    spans: Mapping[str, tuple[int, ...]]
    tokens: tuple[str, ...]

    def positions(self, word: str) -> tuple[int, ...]:
        """Of a placeholder, a named span or any words of the prompt; empty if they are not there."""
        return positions_of(word, self.spans, self.tokens)


def layout_of_prompt(clip, prompt: str, words: Sequence[str]) -> Layout:
    """The layout of `prompt` as `clip` encodes it, with the places of `words` that it holds."""
    tokenizer = PromptTokenizer(clip, known_placeholders(clip))
    return Layout(spans_of(tokenizer, prompt, words), token_texts(token_rows(clip, prompt)))


def layout_of_conditioning(options: Mapping[str, Any], prompt: Layout | None) -> Layout:
    """The layout that a conditioning's options tell, else that of `prompt` if the lengths agree.

    Raises ValueError if neither says where words are.
    """
    tokens = token_count(options["cross_attn"])
    if not tokens:
        raise ValueError("A positive conditioning was zeroed out, so it holds no word that Apply ViCo could look for; "
                         "connect the prompt itself.")
    if SPANS in options and options.get(LENGTH, 0) <= tokens:
        return Layout(options[SPANS], tuple(options.get(TOKENS, ())))
    if prompt is None or len(prompt.tokens) != tokens:
        raise ValueError("A positive conditioning does not say where the subject's word is, which Apply ViCo needs for "
                         "the object mask. Encode every positive prompt with Encode with Spans, or connect clip and "
                         "write the same text into prompt on Apply ViCo.")
    return prompt


def place_of(layout: Layout, word: str, trained: Sequence[str], others: Collection[str] = ()
             ) -> tuple[str, tuple[int, ...]]:
    """`word` and its positions; for "" those of the one of `trained`, or else of the learned words, in the prompt.

    others: words of other objects, which are not meant. Without the word, as released: the first end-of-text token,
    which sums the prompt up; the running node and the log say so. Raises ValueError if the prompt holds several words
    that could be meant, or if its end is not known either.
    """
    candidates = [word] if word else trained
    found = [name for name in candidates if layout.positions(name)]
    if not word and not found:
        found = [name for name in _learned(layout) if name not in others]
    if len(found) > 1:
        raise ValueError(f"The prompt holds {' and '.join(found)}; write into word which of them the reference shows.")
    if found:
        return found[0], layout.positions(found[0])
    missing = word or " or ".join(trained) or "a learned word"
    if END not in layout.tokens:
        raise ValueError(f"The prompt does not hold {missing}; write it there, and encode the prompt with Encode with "
                         "Spans.")
    notice(f"Apply ViCo: the prompt does not hold {missing}, so the object mask is taken from its end-of-text token. Write "
           "the word into the prompt, or into word what the prompt calls the subject.")
    return END, (layout.tokens.index(END),)


def _learned(layout: Layout) -> list[str]:
    """Words that stand for learned vectors."""
    return [name for name, positions in layout.spans.items()
            if positions and all(layout.tokens[p:p + 1] == (LEARNED,) for p in positions)]
