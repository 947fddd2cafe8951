"""CoRe's losses as terms of training: which prompts they compare and what they need for it."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ...text.concept import Concept
from ...text.context_pairs import Pairs, aligned_context
from ...text.tokens import PromptTokens
from ...training.batch import Batch, Stream, Subject
from ...training.diffusion import ALWAYS, denoising_pass
from ...training.interfaces import DenoiserSide, Encode, Maps, Needs, Pass, Results, TextSide
from .loss import context_attention_loss, context_embedding_loss

Formula = Literal["paper", "released"]


@dataclass(frozen=True)
class ContextEmbeddingLoss:
    """CoRe Eq. 3: the text encoder's outputs of a prompt's other words stay as with the class words.

    templates: prompts with one {}, one of which is drawn in each step for all rows.
    formula: "paper" for Eq. 3, "released" for the authors' code, which takes the cosine over the tokens.
    """

    templates: tuple[str, ...]
    weight: float
    formula: Formula
    window: tuple[int, int] = ALWAYS
    name: str = "context embedding"
    stream: ClassVar[Stream] = "subject"

    def check(self, subjects: Sequence[Subject], text: TextSide) -> None:
        """Raises ValueError if a template cannot be compared, whenever it may be drawn."""
        _check_templates(self.templates, [subject.concept for subject in subjects], text)

    def needs(self, batch: Batch, text: TextSide, rng: torch.Generator) -> Needs:
        """The prompt with each row's placeholder and, from the original weights, with its class words."""
        return Needs(encodes=_both_prompts(self.templates, batch, text, rng))

    def __call__(self, got: Results, batch: Batch, model: DenoiserSide) -> Tensor:
        """Scalar float32."""
        objects, references = got.encodes["object"], got.encodes["reference"]
        return context_embedding_loss(objects.cond, references.cond, _pairs(objects.tokens, references.tokens),
                                      axis="feature" if self.formula == "paper" else "token")


@dataclass(frozen=True)
class ContextAttentionLoss:
    """CoRe Eq. 4: the attention that a prompt's other words get stays as with the class words.

    Both prompts run on the noised latents of the step, as released.
    templates, formula: as in ContextEmbeddingLoss.
    estimate: take the queries of the diffusion loss's own pass for both prompts, in place of a pass for each: much
        cheaper, but blind to what the two prompts would change in the queries.
    """

    templates: tuple[str, ...]
    weight: float
    formula: Formula
    estimate: bool = False
    window: tuple[int, int] = ALWAYS
    name: str = "context attention"
    stream: ClassVar[Stream] = "subject"

    @property
    def passes(self) -> tuple[int, int]:
        """Passes of the denoiser for each row beside the diffusion loss's, with a gradient and without."""
        return (0, 0) if self.estimate else (1, 1)

    def check(self, subjects: Sequence[Subject], text: TextSide) -> None:
        """Raises ValueError if a template cannot be compared, whenever it may be drawn."""
        _check_templates(self.templates, [subject.concept for subject in subjects], text)

    def needs(self, batch: Batch, text: TextSide, rng: torch.Generator) -> Needs:
        """Mean attention in all layers for both prompts; their passes end in the last cross-attention."""
        prompts = _both_prompts(self.templates, batch, text, rng)
        if self.estimate:
            shared = denoising_pass(batch, text)
            return Needs(prompts, maps={side: Maps(shared, text.layers, keys=prompt)
                                        for side, prompt in prompts.items()})
        last = text.layers[-1]
        passes = {side: Pass(prompt, grad=prompt.grad, until=last, original=prompt.original)
                  for side, prompt in prompts.items()}
        return Needs(prompts, maps={side: Maps(run, text.layers) for side, run in passes.items()})

    def __call__(self, got: Results, batch: Batch, model: DenoiserSide) -> Tensor:
        """Scalar float32."""
        objects, references = (got.encodes[side].tokens for side in ("object", "reference"))
        return context_attention_loss([_whole(means, objects) for means in got.maps["object"]],
                                      [_whole(means.detach(), references) for means in got.maps["reference"]],
                                      _pairs(objects, references), self.formula)


def _both_prompts(templates: Sequence[str], batch: Batch, text: TextSide, rng: torch.Generator) -> dict[str, Encode]:
    """The drawn template filled for each row's concept: once if all rows show the same."""
    template = templates[int(torch.randint(len(templates), (), generator=rng))]
    concepts = [batch.concept(row) for row in batch.rows["subject"]]
    words = [(concept.placeholder, concept.class_words) for concept in concepts]
    _check_class_words(concepts)
    if len(set(words)) == 1:
        words = words[:1]
    filled = {word: text.tokenizer.fill(template, word) for pair in words for word in pair}
    return {"object": Encode(tuple(filled[placeholder] for placeholder, _ in words)),
            "reference": Encode(tuple(filled[class_words] for _, class_words in words), grad=False, original=True)}


def _check_templates(templates: Sequence[str], concepts: Sequence[Concept], text: TextSide) -> None:
    """Raises ValueError if a step could not compare a template's two prompts."""
    _check_class_words(concepts)
    for concept in concepts:
        for template in templates:
            aligned_context(*(text.tokenizer.fill(template, words)
                              for words in (concept.placeholder, concept.class_words)))


def _check_class_words(concepts: Sequence[Concept]) -> None:
    for concept in concepts:
        if not concept.class_words.strip():
            raise ValueError(f"Concept {concept.placeholder} has no class words, with which CoRe compares; write what "
                             "the subject is, for example dog, into class_words of Concept or Load Concept.")


def _pairs(objects: Sequence[PromptTokens], references: Sequence[PromptTokens]) -> list[Pairs]:
    """Aligned context per row; one for all rows if they share their prompts."""
    if len(references) == 1:
        return [aligned_context(objects[0], references[0])]
    return [aligned_context(ours, theirs) for ours, theirs in zip(objects, references, strict=True)]


def _whole(means: Tensor, tokens: Sequence[PromptTokens]) -> Tensor:
    """(rows, T) with each token's attention in its first place.

    ComfyUI repeats the shorter prompts of a batch up to the longest one's length, which spreads a token's attention
    over the copies.
    """
    if all(prompt.layout.length == means.shape[1] for prompt in tokens):
        return means
    rows = [row.unflatten(0, (-1, prompt.layout.length)).sum(0) for row, prompt in zip(means, tokens, strict=True)]
    return torch.stack([F.pad(row, (0, means.shape[1] - len(row))) for row in rows])
