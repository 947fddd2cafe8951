"""Learning, not plumbing: on fixed pictures, timesteps and noise the losses fall, and not at learning rate 0."""
from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from personalize.nodes.papers.core.terms import ContextAttentionLoss, ContextEmbeddingLoss
from personalize.nodes.text.apply import clip_with_vectors
from personalize.nodes.training.batch import Row
from personalize.nodes.training.dataset import Dataset
from personalize.nodes.training.diffusion import DiffusionLoss
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.plan import Settings
from support.trainings import subject, train

TRIPLES = 8
TEMPLATES = ("a {} in the jungle", "a painting of a {} next to a red house", "a {} at night")


class FixedRecipe:
    """All eight pictures in every step."""

    def rows(self, subjects, step, size, seed):
        return {"subject": tuple(Row(0, i, 0, f"a photo of a {subjects[0].concept.placeholder}")
                                 for i in range(TRIPLES))}


@pytest.fixture
def fixed_noise(monkeypatch):
    """Every step sees the noise and the timesteps of step 1."""
    noised = Dataset.noised
    monkeypatch.setattr(Dataset, "noised", lambda self, rows, sampling, seed, step, stream, device:
                        noised(self, rows, sampling, seed, 1, stream, device))


def losses(checkpoint, seed: int, lr: float) -> list[float]:
    settings = Settings(steps=12, batch_size=TRIPLES, seed=seed, weight_decay=0.0)
    trainer, _, _ = train(checkpoint, settings, subjects=(subject(TRIPLES, 64),), parts=(EmbeddingPart(lr=lr),),
                          recipe=FixedRecipe())
    return [record["loss"] for record in trainer.history]


@pytest.mark.parametrize("seed", range(5))
def test_the_loss_falls_on_fixed_triples(sd15, fixed_noise, seed):
    learned = losses(sd15, seed, lr=1e-4)
    assert learned[-1] < learned[0]
    assert sum(b < a for a, b in itertools.pairwise(learned)) > 8


def test_nothing_is_learned_at_rate_zero(sd15, fixed_noise):
    still = losses(sd15, 0, lr=0.0)
    assert still == pytest.approx([still[0]] * len(still), rel=1e-6)


def context_cosine(clip, vectors) -> float:
    """Mean cosine of the context words behind the subject, between the placeholder and the class word, by hand."""
    taught, found = clip_with_vectors(clip, vectors), []
    with torch.inference_mode():
        for template in TEMPLATES:
            ours, theirs = (taught.encode_from_tokens(taught.tokenize(template.replace("{}", word)))[0]
                            for word in ("<my-dog>", "dog"))
            ids = [token for token, _ in clip.tokenize(template.replace("{}", "dog"))["l"][0]]
            place, end = ids.index(clip.tokenize("dog")["l"][0][1][0]), ids.index(49407)
            found += [float(F.cosine_similarity(ours[i], theirs[i], dim=0)) for i in range(place + 1, end + 1)]
    return sum(found) / len(found)


def core_run(checkpoint, *terms):
    settings = Settings(steps=30, batch_size=2, weight_decay=0.0)
    trainer, learned, _ = train(checkpoint, settings, terms=(DiffusionLoss(), *terms), parts=(EmbeddingPart(lr=2e-3),))
    return trainer.history, learned


def test_context_embedding_loss_at_a_thousand_times_its_weight_restores_the_context(sd15, fixed_noise):
    _, plain = core_run(sd15)
    history, learned = core_run(sd15, ContextEmbeddingLoss(TEMPLATES, 0.15, "released"))
    first, last = (sum(r["parts"]["context embedding"] for r in part) for part in (history[:6], history[-6:]))
    assert last < 0.9 * first
    table = sd15.clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight
    cat = table[sd15.clip.tokenize("cat")["l"][0][1][0]][None].float()
    start = context_cosine(sd15.clip, {"<my-dog>": {"clip_l": cat}})
    assert context_cosine(sd15.clip, learned) > max(start, context_cosine(sd15.clip, plain))


def test_context_attention_loss_falls_when_it_counts(sd15, fixed_noise):
    """A random U-Net attends almost evenly, so that the term is tiny and needs more weight than in a trained one."""
    history, _ = core_run(sd15, ContextAttentionLoss(TEMPLATES[:1], 5e5, "released"))
    terms = [r["parts"]["context attention"] for r in history]
    assert sum(terms[-5:]) < 0.8 * sum(terms[:5])
