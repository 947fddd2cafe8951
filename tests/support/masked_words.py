"""Prompts with words to hide, and a contextualizer that knows these words and nothing else."""
from __future__ import annotations

import torch

from personalize.nodes.papers.context.contextualizer import ContextNetwork, Contextualizer, Sizes
from personalize.nodes.papers.context.masking import hideable
from personalize.nodes.text.encode import encode
from personalize.nodes.text.encoders import text_encoders
from personalize.nodes.text.tokens import PromptTokenizer
from personalize.nodes.text.vectors import WordVectors
from personalize.nodes.training.description import encoder_fingerprint

EVERY = range(10**6)
TEMPLATES = ("a photo of a {} wearing a red hat on the beach", "an oil painting of a {} next to a teapot at night")


def untrained(clip, encoder=None):
    """A contextualizer of random weights that knows the words of the templates."""
    tokenizer = PromptTokenizer(clip, {"<x>": 1})
    words = sorted({tokens.layout.pieces[place].id for template in TEMPLATES
                    for tokens in [tokenizer.fill(template, "<x>")] for place in hideable(tokens, EVERY)})
    torch.manual_seed(3)
    with torch.no_grad():
        width = encode(clip, [tokenizer("a")], [{}]).cond.shape[-1]
    sizes = Sizes(width, len(words), 32, 1, 4)
    mask = WordVectors({e.key: 0.1 * torch.randn(1, e.width) for e in text_encoders(clip)})
    return Contextualizer("untrained", encoder or encoder_fingerprint(clip), sizes, ContextNetwork(sizes).state_dict(),
                          torch.tensor(words), mask, {})
