"""What the miniature Z-Image's text encoder learns before it is frozen: to foresee the next word of a caption."""
from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F

from .deadline import Deadline
from .factors import sample_scene
from .flow_network import LanguageModel
from .grammar import caption
from .run_state import cosine, descend, keep_or_teach

STEPS, BATCH = 2000, 48
RATE = 1e-3
CAPTIONS = 30_000


def learn_language(text: LanguageModel, file: Path, deadline: Deadline) -> bool:
    """Give the encoder what ``file`` kept, or train it on captions and keep that, and freeze it; False when the
    deadline comes first."""
    return keep_or_teach(text, file, lambda: _train(text, deadline))


def _train(text: LanguageModel, deadline: Deadline) -> bool:
    optimizer = torch.optim.AdamW(text.parameters(), lr=RATE, weight_decay=0.01)
    alike, rng = _captions_by_length(text), random.Random("language")
    lengths, counts = zip(*((length, len(rows)) for length, rows in alike.items()))
    for step in range(STEPS):
        if deadline.over:
            return False
        tokens = torch.tensor(rng.choices(alike[rng.choices(lengths, counts)[0]], k=BATCH))
        loss = F.cross_entropy(text.word_scores(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        descend(optimizer, list(text.parameters()), loss, cosine(step, STEPS, RATE, 100))
        if step % 200 == 199:
            deadline.log(f"language: step {step + 1} of {STEPS}, loss {loss.item():.3f}")
    return True


def _captions_by_length(text: LanguageModel) -> dict[int, list[list[int]]]:
    rng, alike = random.Random("captions of the language"), defaultdict(list)
    for _ in range(CAPTIONS):
        sentence = text.sentence(caption(sample_scene(rng), rng, looks=0.85))
        alike[len(sentence)].append(sentence)
    return alike
