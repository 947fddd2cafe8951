"""What the miniature Stable Diffusion's text encoder learns before it is frozen: which picture a caption is of.

CLIP's objective (Radford et al. 2021) on the cached latents of the corpus. What a causal encoder gives at a word is
read by a U-Net as well, so that in a share of the rows a caption is cut after a random word, whose output then stands
for it: a caption's first words are a caption too.
"""
from __future__ import annotations

import itertools
import math
from pathlib import Path

import torch
import torch.nn.functional as F

from .deadline import Deadline
from .latents import QUIET_CAPTIONS, Corpus
from .models import WIDTH
from .network import TextEncoder, first_of
from .run_state import cosine, descend, keep_or_teach

STEPS, BATCH = 4000, 96
RATE = 1e-3
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


def learn_pictures(text: TextEncoder, corpus: Corpus, file: Path, deadline: Deadline) -> bool:
    """Give the encoder what ``file`` kept, or train it on the corpus and keep that, and freeze it; False when the
    deadline comes first."""
    return keep_or_teach(text, file, lambda: _train(text, corpus, deadline))


def _train(text: TextEncoder, corpus: Corpus, deadline: Deadline) -> bool:
    seen, towards = LatentEncoder(), torch.nn.Linear(WIDTH, WIDTH, bias=False)
    scale = torch.nn.Parameter(torch.tensor(SCALE).log())
    parameters = [*text.parameters(), *seen.parameters(), *towards.parameters(), scale]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.05)
    smooth = None
    for step in range(STEPS):
        if deadline.over:
            return False
        latents, tokens = _draw(corpus, BATCH)
        loss = contrastive_loss(towards(caption_outputs(text, tokens)), seen(latents), scale.exp())
        descend(optimizer, parameters, loss, cosine(step, STEPS, RATE, 200))
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        if step % 200 == 199:
            deadline.log(f"text: step {step + 1} of {STEPS}, loss {smooth:.3f} (chance {math.log(BATCH):.3f})")
    return True


def caption_outputs(text: TextEncoder, tokens: torch.Tensor) -> torch.Tensor:
    """(B, 128): the output at the first end token, or in a share ``CUT`` of the rows at a random word of tokens
    (B, 77). What lies behind the longest caption is left out, as no output before depends on it."""
    ends = first_of(tokens, text.end_place)[:, 0]
    words = SHORTEST - 1 + (torch.rand(len(tokens)) * (ends - SHORTEST + 1).clamp(min=1)).long()
    places = torch.where(torch.rand(len(tokens)) < CUT, words.minimum(ends), ends)
    outputs = text(tokens[:, :int(ends.max()) + 1])
    return outputs[torch.arange(len(tokens)), places]


def contrastive_loss(captions: torch.Tensor, pictures: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Mean of both directions' cross-entropy of scaled cosines, of vectors (B, d) of which each row is a pair."""
    cosines = scale * F.normalize(captions, dim=1) @ F.normalize(pictures, dim=1).T
    own = torch.arange(len(captions))
    return (F.cross_entropy(cosines, own) + F.cross_entropy(cosines.T, own)) / 2


def _draw(corpus: Corpus, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and one caption each that may say how the subject looks."""
    chosen = torch.randperm(len(corpus.latents))[:rows]
    sentences = torch.randint(corpus.tokens.shape[1] - QUIET_CAPTIONS, (rows,))
    return corpus.latents[chosen].float() / corpus.spread, corpus.tokens[chosen, sentences].long()
