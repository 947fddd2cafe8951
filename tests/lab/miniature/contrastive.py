"""What the miniature Stable Diffusion's text encoder learns beside its U-Net until it is frozen: which picture a
caption is of.

CLIP's objective (Radford et al. 2021) on the cached latents of the corpus. A U-Net alone gives no reason to pass on
what stands before a word. In a share of the rows a caption is therefore cut after a random word, whose output then
stands for it: a caption's first words are a caption too.
"""
from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F

from .latents import QUIET_CAPTIONS, Corpus
from .models import WIDTH
from .network import TextEncoder, first_of

BATCH = 64
CUT = 0.5            # share of the rows in which a word's output stands for the caption up to it
SHORTEST = 3         # places of the shortest one, "a dog" after the start
SCALE = 20.0         # of cosines, at the start


class LatentEncoder(torch.nn.Module):
    """Unit-variance latents (B, 16, 16, 16) to vectors (B, 128)."""

    def __init__(self) -> None:
        super().__init__()
        widths, layers = (16, 64, 96, 128), []
        for before, after in itertools.pairwise(widths):
            layers += [torch.nn.Conv2d(before, after, 3, 2, 1), torch.nn.GroupNorm(8, after), torch.nn.SiLU(),
                       torch.nn.Conv2d(after, after, 3, 1, 1), torch.nn.GroupNorm(8, after), torch.nn.SiLU()]
        self.features = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.features(latents)


class Matching(torch.nn.Module):
    """Captions and the pictures that they are of, in one space."""

    def __init__(self) -> None:
        super().__init__()
        self.pictures = LatentEncoder()
        self.captions = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        self.log_scale = torch.nn.Parameter(torch.tensor(SCALE).log())

    def forward(self, text: TextEncoder, latents: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The contrastive loss of unit-variance latents (B, 16, 16, 16) and their captions' tokens (B, 77)."""
        captions = self.captions(caption_outputs(text, tokens))
        return contrastive_loss(captions, self.pictures(latents), self.log_scale.exp())


def caption_outputs(text: TextEncoder, tokens: torch.Tensor) -> torch.Tensor:
    """(B, 128): the output at the first end token, or in a share ``CUT`` of the rows at a random word of tokens
    (B, 77). What lies behind the longest caption is left out, as no output before depends on it."""
    ends = first_of(tokens, text.end_place)[:, 0]
    words = SHORTEST - 1 + (torch.rand_like(ends, dtype=torch.float32) * (ends - SHORTEST + 1).clamp(min=1)).long()
    places = torch.where(torch.rand_like(ends, dtype=torch.float32) < CUT, words.minimum(ends), ends)
    outputs = text(tokens[:, :int(ends.max()) + 1])
    return outputs[torch.arange(len(tokens)), places]


def contrastive_loss(captions: torch.Tensor, pictures: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Mean of both directions' cross-entropy of scaled cosines, of vectors (B, d) of which each row is a pair."""
    cosines = scale * F.normalize(captions, dim=1) @ F.normalize(pictures, dim=1).T
    own = torch.arange(len(captions), device=captions.device)
    return (F.cross_entropy(cosines, own) + F.cross_entropy(cosines.T, own)) / 2


def draw_captioned(corpus: Corpus, rows: int = BATCH) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and one caption each that may say how the subject looks."""
    on = corpus.latents.device
    chosen = torch.randperm(len(corpus.latents), device=on)[:rows]
    sentences = torch.randint(corpus.tokens.shape[1] - QUIET_CAPTIONS, (len(chosen),), device=on)
    return corpus.latents[chosen].float() / corpus.spread, corpus.tokens[chosen, sentences].long()
