"""Where the subject's word is in the prompts of a sampling run."""
from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ...notice import notice
from ...text.layout import END, LEARNED, Layout, layout_of, parse_words
from ...text.pairs import token_count

END_OF_TEXT = "<end>"  # the word of a map that is taken from the prompt's end


def layout_of_conditioning(options: Mapping[str, Any], prompt: Layout | None) -> Layout:
    """The layout that a conditioning's options tell, else that of `prompt` if the lengths agree.

    Raises ValueError if neither says where words are.
    """
    if not token_count(options["cross_attn"]):
        raise ValueError("A positive conditioning was zeroed out, so it holds no word that Apply ViCo could look for; "
                         "connect the prompt itself.")
    layout = layout_of(options, prompt)
    if layout is None:
        raise ValueError("A positive conditioning does not say where the subject's word is, which Apply ViCo needs for "
                         "the object mask. Encode every positive prompt with Encode with Spans, or connect clip and "
                         "write the same text into prompt on Apply ViCo.")
    return layout


def place_of(layout: Layout, words: str, trained: Sequence[str], others: Collection[str] = ()
             ) -> tuple[str, tuple[int, ...]]:
    """What of `words` the prompt holds, and its positions; for "" those of the one of `trained`, or else of the learned
    words, in the prompt.

    others: words of other objects, which are not meant. Without the word, as released: the first end-of-text token,
    which sums the prompt up; the running node and the log say so. Raises ValueError if the prompt holds several words
    that could be meant, or if its end is not known either.
    """
    wanted = parse_words(words)
    found = [name for name in wanted or trained if layout.find(name)]
    if not wanted and not found:
        found = [name for name in _learned(layout) if name not in others]
    if len(found) > 1 and not wanted:
        raise ValueError(f"The prompt holds {' and '.join(found)}; write into words which of them the reference shows.")
    if found:
        return ", ".join(found), tuple(dict.fromkeys(position for name in found for position in layout.find(name)))
    missing = words or " or ".join(trained) or "a learned word"
    ends = layout.of_kind(END)
    if not ends:
        raise ValueError(f"The prompt does not hold {missing}; write it there, and encode the prompt with Encode with "
                         "Spans.")
    notice(
        f"Apply ViCo: the prompt does not hold {missing}, so the object mask is taken from its end-of-text token. "
        "Write the word into the prompt, or into words what the prompt calls the subject."
    )
    return END_OF_TEXT, ends[:1]


def _learned(layout: Layout) -> list[str]:
    """Words that stand for learned vectors."""
    learned = set(layout.of_kind(LEARNED))
    return [name for name, positions in layout.spans if positions and learned.issuperset(positions)]
