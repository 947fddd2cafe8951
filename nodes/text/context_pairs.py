"""The same context words in two prompts that differ in the subject alone."""
from __future__ import annotations

from typing import TYPE_CHECKING

from .layout import END, FILLED, LEARNED, START, WORD, Layout

if TYPE_CHECKING:
    from .tokens import PromptTokens

Pairs = tuple[tuple[int, int], ...]


def aligned_context(object_tokens: PromptTokens, reference_tokens: PromptTokens) -> Pairs:
    """Positions (object, reference) of the same context token in both prompts.

    Starts and ends are paired one by one, words in their order: S* and the class words may differ in length.
    Raises ValueError if the prompts differ in more than the subject.
    """
    ours, theirs = object_tokens.layout, reference_tokens.layout
    words = [_other_words(layout) for layout in (ours, theirs)]
    if len(words[0]) != len(words[1]):
        raise ValueError(f"Prompts '{object_tokens.text}' and '{reference_tokens.text}' differ in more than the "
                         f"subject: {len(words[0])} and {len(words[1])} other tokens; take another placeholder or "
                         "class word.")
    edges = [pair for kind in (START, END) for pair in zip(ours.of_kind(kind), theirs.of_kind(kind))]
    return tuple(sorted([*edges, *zip(*words)]))


def context_after(object_tokens: PromptTokens, reference_tokens: PromptTokens) -> Pairs:
    """Positions (object, reference) of the context words that follow the subject in the reference, which is all that a
    causal text encoder lets the subject change; they end both prompts. Empty if none follows.

    The object's prompt may have words of its own between its subject and these: "<my-dog> dog on grass", "dog on
    grass". Raises ValueError if they are not the same words.
    """
    theirs = reference_tokens.layout
    last = max(theirs.span(FILLED))
    followers = [position for position in _other_words(theirs) if position > last]
    words = _other_words(object_tokens.layout)
    pairs = tuple(zip(words[len(words) - len(followers):], followers))
    if [object_tokens.layout.pieces[ours].id for ours, _ in pairs] != [theirs.pieces[i].id for i in followers]:
        raise ValueError(f"Prompts '{object_tokens.text}' and '{reference_tokens.text}' do not end in the same words; "
                         "write a space after the {} of the prompt.")
    return pairs


def _other_words(layout: Layout) -> list[int]:
    subject = set(layout.span(FILLED))
    return [position for position in layout.of_kind(WORD, LEARNED) if position not in subject]
