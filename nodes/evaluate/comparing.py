"""What a concept's word does to the other words of prompts, beside what ordinary words do."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import comfy.model_management as mm
import torch
from torch import Tensor

from ..attention.words import Words
from ..families.layers import AttentionLayer
from ..recording.latent_recorder import record_latent
from ..recording.reading import check_numbers
from ..recording.record import Record
from ..text.concept import Concept, initial_vectors
from ..text.context_pairs import Pairs, context_after
from ..text.encode import Encoded, encode_together
from ..text.layout import END
from ..text.pairs import keys_of
from ..text.prompts import SLOT
from ..text.tokens import PromptTokenizer, PromptTokens
from ..text.vectors import WordVectors
from .similarity import concept_context_similarity, context_similarity, symmetric_divergence

PROMPTS_AT_ONCE = 8
_CONCEPT = "the concept"  # of a layout's spans
_MADE_BY = "Context Similarity"


@dataclass(frozen=True)
class Compared:
    """One prompt.

    template: with its {}. to_concept, to_itself, divergence: sim₁, sim₂ and SKL of Diverse Context's Table 1, each the
    mean over the context words; divergence is None if no picture was looked at. words: the context words after the
    subject, then "end". cosines: the concept's placeholder and each control word → for each of `words` the cosine of
    its encoding with that beside the class words (CoRe, Fig. 2).
    """

    template: str
    to_concept: float
    to_itself: float
    divergence: float | None
    words: tuple[str, ...]
    cosines: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Look:
    """At a picture, for the attention to each word. latent: (images, C, h, w) as LATENT holds it; timesteps: 0…999."""

    model: object
    latent: Tensor
    timesteps: Sequence[int]
    seed: int
    layers: Sequence[AttentionLayer]

    def divergence(self, encoded: Encoded, concept: Sequence[int], context: Sequence[int]) -> float:
        """SKL of the concept's map with each of these positions' maps, mean over positions, layers and images."""
        names = [f"word {position}" for position in context]
        spans = ((_CONCEPT, tuple(concept)), *((name, (position,)) for name, position in zip(names, context)))
        layout = replace(encoded.tokens[0].layout, spans=spans)
        record = Record(_MADE_BY, complete=True)
        record_latent(self.model, encoded.conditioning(), self.latent, self.timesteps, self.seed, record, self.layers,
                      Words((_CONCEPT, *names), layout))
        run, found = record.current, []
        run.require_maps(_MADE_BY)
        for layer in run.layers:
            ours, *others = (maps.flatten(1) for name in (_CONCEPT, *names)
                             if (maps := run.map(name, layer)) is not None)
            check_numbers(torch.stack([ours, *others]), _MADE_BY)
            found += [symmetric_divergence(ours[i], torch.stack([other[i] for other in others])).mean().item()
                      for i in range(len(ours))]
        return fmean(found)


def compare(clip, concept: Concept, templates: Sequence[str], controls: Sequence[str], look: Look | None,
            each_prompt: Callable[[int], None]) -> list[Compared]:
    """Every template with a word after its slot, in which the concept's placeholder, the class words and each control
    word are put in turn. each_prompt: is told how many have been compared.

    Class words that follow the slot, as in "a {} dog on grass", belong to the subject: without the concept it is "a dog
    on grass". Vectors per layer are compared layer by layer. Raises ValueError if no template has a word after its
    slot, or if attention is asked for with vectors per layer.
    """
    vectors = initial_vectors(concept, clip)
    if look and vectors.axis is not None:
        raise ValueError(f"Concept {concept.placeholder} has other vectors for every layer, whose attention cannot be "
                         f"looked at here; disconnect model and latent of {_MADE_BY}.")
    tokenizer = PromptTokenizer(clip, {concept.placeholder: vectors.count})
    prompts = [made for template in templates if (made := _prompt(tokenizer, concept, template, controls))]
    if not prompts:
        raise ValueError(f"In none of the {len(templates)} prompts a word follows the subject, so that there is no "
                         "context that it could change; connect prompts such as: a {} in the desert.")
    found: list[Compared] = []
    for start in range(0, len(prompts), PROMPTS_AT_ONCE):
        mm.throw_exception_if_processing_interrupted()
        together = prompts[start:start + PROMPTS_AT_ONCE]
        for prompt, encodings in zip(together, _encoded(clip, concept, vectors, together)):
            found.append(_compared(concept, prompt, *encodings, look))
            each_prompt(len(found))
    return found


@dataclass(frozen=True)
class _Prompt:
    """ours: with the placeholder. without: with the class words. pairs: context words of both. controls: word →
    prompt with it."""

    template: str
    ours: PromptTokens
    without: PromptTokens
    pairs: Pairs
    controls: Mapping[str, PromptTokens]


def _prompt(tokenizer: PromptTokenizer, concept: Concept, template: str, controls: Sequence[str]) -> _Prompt | None:
    before, _, after = template.partition(SLOT)
    rest, class_words = after.lstrip(), concept.class_words
    named = rest.lower().startswith(class_words.lower()) and not rest[len(class_words):][:1].isalnum()
    plain = f"{before}{SLOT}{rest[len(class_words):]}" if named else template
    ours, without = tokenizer.fill(template, concept.placeholder), tokenizer.fill(plain, class_words)
    pairs = context_after(ours, without)
    others = {word: tokenizer.fill(plain, word) for word in controls}
    return _Prompt(template, ours, without, pairs, others) if pairs else None


def _encoded(clip, concept: Concept, vectors: WordVectors, prompts: Sequence[_Prompt]
             ) -> Iterator[tuple[list[Encoded], Encoded, list[Encoded]]]:
    """Of each prompt: with the placeholder, for every layer; with the class words; with each control word."""
    layers = [vectors] if vectors.axis is None else [vectors.at(i) for i in range(len(next(iter(vectors.values()))))]
    rows = [{concept.placeholder: each} for each in layers]
    requests = [request for prompt in prompts for request in (
        *(([prompt.ours], [row]) for row in rows), ([prompt.without], [{}]),
        *(([tokens], [{}]) for tokens in prompt.controls.values()))]
    with torch.no_grad():
        made = iter(encode_together(clip, requests))
    for prompt in prompts:
        yield [next(made) for _ in rows], next(made), [next(made) for _ in prompt.controls]


def _compared(concept: Concept, prompt: _Prompt, ours: Sequence[Encoded], without: Encoded, controls: Sequence[Encoded],
              look: Look | None) -> Compared:
    subject, context = prompt.ours.layout.span(concept.placeholder), [position for position, _ in prompt.pairs]
    reference, outputs = _outputs(without), [_outputs(each) for each in ours]
    to_concept = [concept_context_similarity(each, subject, context).mean().item() for each in outputs]
    to_itself = [context_similarity(each, reference, prompt.pairs).mean().item() for each in outputs]
    cosines = {concept.placeholder: torch.stack([
        context_similarity(each, reference, _to_the_end(prompt.ours, prompt.without, prompt.pairs))
        for each in outputs]).mean(0)}
    for (word, tokens), encoded in zip(prompt.controls.items(), controls):
        pairs = _to_the_end(tokens, prompt.without, context_after(tokens, prompt.without))
        cosines[word] = context_similarity(_outputs(encoded), reference, pairs)
    pieces = prompt.without.layout.pieces
    words = tuple(pieces[position].text for _, position in prompt.pairs)
    return Compared(prompt.template, fmean(to_concept), fmean(to_itself),
                    look.divergence(ours[0], subject, context) if look else None,
                    (*words, *(["end"] if len(next(iter(cosines.values()))) > len(words) else [])),
                    {word: tuple(row.tolist()) for word, row in cosines.items()})


def _to_the_end(ours: PromptTokens, others: PromptTokens, pairs: Pairs) -> Pairs:
    """The pairs, and the first end token of both."""
    return (*pairs, *list(zip(ours.layout.of_kind(END), others.layout.of_kind(END)))[:1])


def _outputs(encoded: Encoded) -> Tensor:
    """(T, C) of one prompt, on the CPU."""
    outputs, length = keys_of(encoded.cond)[0].float().cpu(), encoded.tokens[0].layout.length
    if len(outputs) != length:
        raise ValueError(f"Another node has changed how this CLIP encodes: it gives {len(outputs)} tokens for a prompt "
                         f"of {length}; connect the checkpoint's own CLIP.")
    return outputs
