"""Batches of captions of one length, for a denoiser that has no mask for the ends of shorter ones."""
from __future__ import annotations

import torch

from .flow_network import NO_TOKEN
from .latents import QUIET_CAPTIONS, Corpus


class Alike:
    """The captions of a corpus that say how subjects look, by their lengths."""

    def __init__(self, corpus: Corpus):
        self.corpus = corpus
        self.spoken = corpus.tokens.shape[1] - QUIET_CAPTIONS
        lengths = (corpus.tokens[:, :self.spoken] != NO_TOKEN).sum(-1).flatten()
        self.lengths = lengths
        self.of_length = {int(length): (lengths == length).nonzero().flatten() for length in lengths.unique()}

    def draw(self, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Unit-variance latents (rows, 16, 16, 16), tokens (rows, L) and foreground (rows, 1, 16, 16) in 0..1; every
        caption is as likely as another."""
        length = int(self.lengths[torch.randint(len(self.lengths), ())])
        alike = self.of_length[length]
        chosen = alike[torch.randint(len(alike), (rows,))]
        scenes, sentences = chosen // self.spoken, chosen % self.spoken
        latents = self.corpus.latents[scenes].float() / self.corpus.spread
        return latents, self.corpus.tokens[scenes, sentences, :length].long(), self.corpus.foreground[scenes] / 255
