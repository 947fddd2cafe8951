"""The masked-language-model loss as a term of training."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...text.tokens import PromptTokens
from ...text.vectors import Vectors
from ...training.batch import Batch, Stream, Subject
from ...training.description import encoder_fingerprint
from ...training.diffusion import ALWAYS
from ...training.interfaces import DenoiserSide, Encode, Needs, Results, TextSide
from .contextualizer import Contextualizer
from .loss import hidden_word_logits, masked_language_loss
from .masking import MASK, draw_positions, hidden_words, hideable, masked


@dataclass(frozen=True)
class MaskedLanguageLoss:
    """λ · L_MLM of Diverse Context's Eq. 7: in a prompt with the subject's word some words are hidden, and the
    contextualizer, which is frozen, must be able to tell them from the others.

    templates: rich prompts with one {}, one of which is drawn in each step for all rows. share: ρ, how many of its
    words are hidden, above 0 and below 1. Words that the contextualizer does not know are not hidden.
    """

    templates: tuple[str, ...]
    contextualizer: Contextualizer
    weight: float = 1e-4
    share: float = 0.15
    window: tuple[int, int] = ALWAYS
    name: str = "masked words"
    stream: ClassVar[Stream] = "subject"

    @property
    def words(self) -> Vectors:
        """What stands in prompts beside the words that are learned."""
        return {MASK: self.contextualizer.mask}

    def check(self, subjects: Sequence[Subject], text: TextSide) -> None:
        """Raises ValueError if the contextualizer is of another text encoder, or knows no word of a template."""
        if encoder_fingerprint(text.tokenizer.clip) != self.contextualizer.encoder:
            raise ValueError(f"The contextualizer {self.contextualizer.name} was trained on another text encoder than "
                             "this CLIP's; choose the one of this encoder with Load Contextualizer, or train one.")
        for subject in subjects:
            for template in self.templates:
                if not self._hideable(text.tokenizer.fill(template, subject.concept.placeholder)):
                    raise ValueError(f"The contextualizer {self.contextualizer.name} knows no word of the prompt "
                                     f"'{template}'; train it on prompts of this kind, or leave the prompt out.")

    def needs(self, batch: Batch, text: TextSide, rng: torch.Generator) -> Needs:
        """The drawn prompt with each row's placeholder and hidden words."""
        return Needs(encodes={"masked": Encode(self._prompts(batch, text, rng))})

    def __call__(self, got: Results, batch: Batch, model: DenoiserSide) -> Tensor:
        """Scalar float32."""
        encoded = got.encodes["masked"]
        logits = hidden_word_logits(self.contextualizer.network.to(encoded.cond.device), encoded)
        words = [self.contextualizer.places[word] for tokens in encoded.tokens for word in hidden_words(tokens)]
        return masked_language_loss(logits, torch.tensor(words, device=logits.device))

    def _prompts(self, batch: Batch, text: TextSide, rng: torch.Generator) -> tuple[PromptTokens, ...]:
        """One for all rows if they show the same subject; the same words are hidden for every one."""
        template = self.templates[int(torch.randint(len(self.templates), (), generator=rng))]
        names = [batch.concept(row).placeholder for row in batch.rows["subject"]]
        state, found = rng.get_state(), {}
        for name in dict.fromkeys(names):
            rng.set_state(state)
            tokens = text.tokenizer.fill(template, name)
            positions = draw_positions(self._hideable(tokens), self.share, rng)
            found[name] = masked(tokens, positions, text.tokenizer)
        return (found[names[0]],) if len(found) == 1 else tuple(found[name] for name in names)

    def _hideable(self, tokens: PromptTokens) -> tuple[int, ...]:
        return hideable(tokens, self.contextualizer.places)
