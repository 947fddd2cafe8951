"""The masked-language-model loss (Diverse Context Eq. 5)."""
from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...text.encode import Encoded
from ...text.layout import PADDING, Layout
from .contextualizer import ContextNetwork
from .masking import hidden


def left_out(layouts: Sequence[Layout], length: int, device: torch.device) -> Tensor:
    """(rows, length) bool: padding of each prompt, and what lies beyond its end."""
    found = torch.ones(len(layouts), length, dtype=torch.bool, device=device)
    for row, layout in enumerate(layouts):
        padding = set(layout.of_kind(PADDING))
        found[row, [place for place in range(layout.length) if place not in padding]] = False
    return found


def hidden_word_logits(network: ContextNetwork, encoded: Encoded) -> Tensor:
    """Logits (hidden words of all rows, words) for masked prompts."""
    outputs = encoded.cond.float()
    ignored = left_out([tokens.layout for tokens in encoded.tokens], outputs.shape[1], outputs.device)
    logits = network(outputs, ignored)
    rows = [row for row, tokens in enumerate(encoded.tokens) for _ in hidden(tokens)]
    places = [place for tokens in encoded.tokens for place in hidden(tokens)]
    return logits[rows, places]


def masked_language_loss(logits: Tensor, words: Tensor) -> Tensor:
    """L_MLM = E[CrossEntropy(y, ŷ)] (Eq. 5), mean over all hidden words; logits (n, words), words (n,)."""
    return F.cross_entropy(logits, words)
