"""The training loop on real ComfyUI objects: learning, gradients, resume, and nothing left behind."""
from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import personalize  # noqa: F401
from personalize.nodes.text.concept import Concept, initial_vectors
from personalize.nodes.training.diffusion import DiffusionLoss
from personalize.nodes.training.assembly import open_training
from personalize.nodes.training.batch import Picture, Subject
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.plan import Plan, Settings
from personalize.nodes.training.recipe import TemplateRecipe


def subject(pictures: int = 3, size: int = 64, placeholder: str = "<my-dog>", count: int = 1) -> Subject:
    draw = torch.Generator().manual_seed(5)
    return Subject(Concept(placeholder, "dog", "cat", count),
                   tuple(Picture(torch.rand(1, size, size, 3, generator=draw), name=f"picture {i + 1}")
                         for i in range(pictures)))


def train(checkpoint, settings, *, subjects=None, parts=(EmbeddingPart(),), terms=(DiffusionLoss(),), recipe=None,
          each_step=lambda trainer, record: True, resume=None):
    """Runs the loop as the Train node does; returns the trainer, the learned vectors and the state."""
    plan = Plan(*checkpoint, subjects or (subject(),), parts, terms, recipe or TemplateRecipe(), settings)
    with torch.inference_mode(), open_training(plan, resume) as trainer:
        trainer.run(each_step)
        state = replace(trainer.state(), tensors={name: t.clone() for name, t in trainer.state().tensors.items()})
        learned = {name: v for part in trainer.parts for name, v in part.learned_vectors().items()}
    return trainer, learned, state


@pytest.mark.smoke
def test_a_step_moves_only_the_vectors(any_checkpoint):
    trainer, learned, _ = train(any_checkpoint, Settings(steps=2, batch_size=2))
    start = initial_vectors(subject().concept, any_checkpoint.clip)
    for key, rows in learned["<my-dog>"].items():
        assert (rows != start[key]).all(), key
    assert [record["step"] for record in trainer.history] == [1, 2]
    assert all(math.isfinite(record["loss"]) for record in trainer.history)


def test_micro_batches_give_the_same_step(sd15):
    """SGD moves by the gradient itself; Adam would blow up a rounding error where a gradient is almost zero."""
    settings = Settings(steps=3, batch_size=4, optimizer="SGD")
    whole, parts = (train(sd15, replace(settings, micro_batch=rows)) for rows in (0, 1))
    torch.testing.assert_close(parts[1]["<my-dog>"]["clip_l"], whole[1]["<my-dog>"]["clip_l"], atol=1e-6, rtol=1e-4)
    assert [r["loss"] for r in parts[0].history] == pytest.approx([r["loss"] for r in whole[0].history], rel=1e-4)


def test_fifty_and_fifty_steps_are_a_hundred(sd15):
    settings = Settings(steps=20, batch_size=2)
    whole, learned, _ = train(sd15, settings)
    first, _, state = train(sd15, settings, each_step=lambda trainer, record: record["step"] < 10)
    assert first.step == 10
    second, resumed, _ = train(sd15, settings, resume=state)
    assert [r["loss"] for r in second.history] == [r["loss"] for r in whole.history]
    assert torch.equal(resumed["<my-dog>"]["clip_l"], learned["<my-dog>"]["clip_l"])


def test_gradient_checkpointing_gives_the_same_step(sdxl):
    plain = train(sdxl, Settings(steps=2, batch_size=2))
    recomputed = train(sdxl, Settings(steps=2, batch_size=2, checkpointing=True))
    for key, rows in plain[1]["<my-dog>"].items():
        torch.testing.assert_close(recomputed[1]["<my-dog>"][key], rows, atol=1e-6, rtol=1e-5)
