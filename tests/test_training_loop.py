"""The training loop on real ComfyUI objects: learning, gradients, resume, and nothing left behind."""
from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import personalize  # noqa: F401
from personalize.nodes.text.concept import initial_vectors
from personalize.nodes.training.plan import Settings
from support.trainings import subject, train


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
