"""Which tokens of a prompt span the text's subspace in Eq. 3."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...text.layout import END, PADDING, START, Layout

A_VECTOR = "a vector"  # of an embedding file
ARTICLES = frozenset({"a", "an", "the"})
WORDS, WORDS_AND_END, ALL = "words", "words and end", "all"
TOKENS_OF = {WORDS: frozenset(), WORDS_AND_END: frozenset({END}), ALL: frozenset({START, END, PADDING})}


@dataclass(frozen=True)
class BasisTokens:
    """Tokens of one prompt that span the text's subspace.

    positions: where they are in the conditioning. used, excluded: the words of the basis and those left out, each once.
    absent: words of the subject that the prompt does not hold. repetitions: how often the prompt is said.
    """

    positions: tuple[int, ...]
    used: tuple[str, ...]
    excluded: tuple[str, ...]
    absent: tuple[str, ...]
    repetitions: int


def basis_tokens(layout: Layout, subject_words: Sequence[str], which: str) -> BasisTokens:
    """Tokens of the basis out of those of a conditioning.

    subject_words: of the subject, such as its class; they, learned vectors, visual tokens and articles never belong to
    the basis. which: WORDS, WORDS_AND_END or ALL, what belongs to it beside. Of a prompt that is repeated as a whole,
    as BLIP-Diffusion does, only the first time counts.
    """
    words = layout.words()
    texts = [word.text for word in words]
    places = {name: layout.places(name, words) for name in subject_words}
    period = _period(texts)
    left_out = {i for found in places.values() for i in found}
    left_out |= {i for i, word in enumerate(words) if word.learned or word.text in ARTICLES}
    used = [i for i in range(period) if i not in left_out]
    positions = [position for i in used for position in words[i].positions]
    return BasisTokens(
        positions=tuple(sorted([*positions, *layout.of_kind(*TOKENS_OF[which])])),
        used=tuple(dict.fromkeys(texts[i] for i in used)),
        excluded=tuple(dict.fromkeys(texts[i] or A_VECTOR for i in range(period) if i in left_out)),
        absent=tuple(name for name, found in places.items() if not found),
        repetitions=-(-len(texts) // period) if period else 0)


def _period(texts: Sequence[str]) -> int:
    """Words until the prompt begins anew; all of them if it does not. "a dog, a dog" and "a dog, a dog, a" have 3.

    The last word may be cut off.
    """
    for candidate in (list(texts), [*texts, ","]):
        for period in range(1, len(candidate) // 2 + 1):
            *first, first_end = candidate[:-period]
            *again, again_end = candidate[period:]
            if first == again and first_end.startswith(again_end):
                return period
    return len(texts)
