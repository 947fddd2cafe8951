"""Where the picture encoder starts: it says what a caption would say of the subject, in the text encoder's own states.

The U-Net understands such tokens at once, as ELITE's and BLIP-Diffusion's mappers make them; what no word says is
learned with the U-Net. Left to the U-Net alone, 60 000 rows with references taught an encoder nothing.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F

from . import latents
from .deadline import Deadline
from .grammar import identity_words
from .latents import Corpus
from .network import VISUAL_TOKENS, TextEncoder

RATE = 1e-3
ROWS = 64


@torch.no_grad()
def words_of_references(text: TextEncoder, shards: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (n,) of a corpus' references whose subject a caption can name, and the first text states (n, 8, 128) of that
    caption after the start token."""
    subjects = [scene.identity for number in range(shards) for scene in latents.shard_scenes(number)[1]]
    named = [row for row, identity in enumerate(subjects) if identity.named]
    captions = [f"a {identity_words(subjects[row])} {subjects[row].kind}" for row in named]
    distinct = sorted(set(captions))
    states = torch.cat([text(text.tokens(distinct[i:i + ROWS]))[:, 1:1 + VISUAL_TOKENS]
                        for i in range(0, len(distinct), ROWS)])
    place = {caption: i for i, caption in enumerate(distinct)}
    return torch.tensor(named), states[[place[caption] for caption in captions]]


def teach_words(networks: torch.nn.ModuleDict, corpus: Corpus, steps: int, deadline: Deadline) -> None:
    """Fit the picture encoder to the words of the corpus' references; the last of 16 parts is held out and logged."""
    encoder = networks["picture"]
    rows, words = words_of_references(networks["text"], len(corpus.references) // latents.REFERENCES)
    held, variance = len(rows) // 16, words.var(0).mean()
    with torch.no_grad():
        encoder.mean.copy_(words.mean(0))
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for step in range(steps):
        if deadline.over:
            return
        chosen = torch.randint(len(rows) - held, (ROWS,))
        loss = _error(encoder, corpus, rows[chosen], words[chosen]) / variance
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            with torch.no_grad():
                unseen = _error(encoder, corpus, rows[-held:], words[-held:]) / variance
            deadline.log(
                f"picture encoder step {step + 1}: error {loss:.3f} of the words' variance, held out {unseen:.3f}"
            )


def _error(encoder: torch.nn.Module, corpus: Corpus, rows: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    on = corpus.references.device
    return F.mse_loss(encoder(corpus.references[rows.to(on)].float() / 255), words.to(on))
