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
from .run_state import cosine, write_atomically

STEPS, BATCH = 2000, 48
RATE = 1e-3
CAPTIONS = 30_000


def learn_language(text: LanguageModel, file: Path, deadline: Deadline) -> bool:
    """Give the encoder what ``file`` kept, or train it on captions and keep that, and freeze it; False when the
    deadline comes first."""
    if file.is_file():
        text.load_state_dict(torch.load(file, weights_only=True))
    elif _train(text, deadline):
        write_atomically(file, text.state_dict())
    else:
        return False
    text.requires_grad_(False)
    return True


def _train(text: LanguageModel, deadline: Deadline) -> bool:
    optimizer = torch.optim.AdamW(text.parameters(), lr=RATE, weight_decay=0.01)
    alike, rng = _captions_by_length(text), random.Random("language")
    lengths, counts = zip(*((length, len(rows)) for length, rows in alike.items()))
    for step in range(STEPS):
        if deadline.over:
            return False
        tokens = torch.tensor(rng.choices(alike[rng.choices(lengths, counts)[0]], k=BATCH))
        loss = F.cross_entropy(text.word_scores(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        for group in optimizer.param_groups:
            group["lr"] = cosine(step, STEPS, RATE, 100)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(text.parameters(), 1.0)
        optimizer.step()
        if step % 200 == 199:
            deadline.log(f"language: step {step + 1} of {STEPS}, loss {loss.item():.3f}")
    return True


def _captions_by_length(text: LanguageModel) -> dict[int, list[list[int]]]:
    rng, alike = random.Random("captions of the language"), defaultdict(list)
    for _ in range(CAPTIONS):
        sentence = text.sentence(caption(sample_scene(rng), rng, looks=0.85))
        alike[len(sentence)].append(sentence)
    return alike
