"""What recorded attention may take of memory: later steps are left out with a sentence, too large a drawing is
refused."""
from __future__ import annotations

import logging

import comfy.model_management
import pytest
import torch

from personalize.nodes.families.layers import AttentionLayer
from personalize.nodes.recording import nodes_show
from personalize.nodes.recording import record as records
from personalize.nodes.recording.nodes_show import PersonalizeShowAttention, PersonalizeShowMasks
from personalize.nodes.recording.record import Record

KILOBYTE = 1024
LAYERS = [AttentionLayer(("input", number), 0, number, 32, 4, 1) for number in range(2)]
STEP = 2 * 2 * 32 * 32 * 2 * 2  # bytes: layers, words, pixels, maps and their weights, float16


def recorded(record: Record, steps: int, images: int = 1) -> Record:
    """A run of a sampler on latents of 32 × 32 whose layers look at two words."""
    record.begin(images, (32, 32), steps, 8)
    for step in range(steps):
        for layer in LAYERS:
            record.add_maps(step, layer, torch.full((images, 2, 32, 32), (step + 1) / 100), ("dog", "hat"))
        record.add_mask(step, torch.ones(1, 32, 32))
    record.finish(torch.zeros(images, 4, 32, 32))
    return record


def kept(record: Record) -> int:
    runs = [(run._sums, run.masks) for run in record._samplings]
    maps = [part for sums, _ in runs for steps in sums.values() for parts in steps.values() for part in parts]
    return sum(each.nbytes for each in maps) + sum(mask.untyped_storage().nbytes() for _, masks in runs
                                                   for mask in masks.values())


def test_steps_are_kept_whole_until_the_record_is_full(monkeypatch, caplog):
    monkeypatch.setattr(records, "LARGEST_RECORD", 100 * KILOBYTE)
    with caplog.at_level(logging.WARNING, "personalize"):
        record = recorded(Record("Record Attention", every_step=True), steps=50)
    each = STEP + 32 * 32 * 2
    steps = -(-100 * KILOBYTE // each)
    assert record.current.map_steps == tuple(range(steps)) and list(record.current.masks) == list(range(steps))
    assert kept(record) == record.current.bytes == steps * each <= 100 * KILOBYTE + each
    assert torch.allclose(record.current.map("hat", LAYERS[1], steps - 1), torch.tensor(steps / 100), atol=1e-3)
    [sentence] = [line.message for line in caplog.records]
    assert sentence.startswith("Record Attention holds 0.0 GB, the most it may take, so its later steps are not kept;")


def test_earlier_runs_make_room(monkeypatch, caplog):
    monkeypatch.setattr(records, "LARGEST_RECORD", 100 * KILOBYTE)
    record = Record("Record Attention", every_step=True)
    for _ in range(4):
        recorded(record, steps=3)
        assert kept(record) <= 100 * KILOBYTE + STEP + 2 * KILOBYTE
    assert len(record._samplings) < 4 and record.current.map_steps == (0, 1, 2) and not caplog.records


def test_a_mean_does_not_grow_with_its_steps(caplog):
    record, longer = (recorded(Record("Record Attention"), steps) for steps in (2, 40))
    assert record.current.bytes - 2 * 2048 == longer.current.bytes - 40 * 2048 == 2 * STEP
    assert torch.allclose(longer.current.map("dog", LAYERS[0]), torch.tensor(0.205), atol=1e-6)
    assert not caplog.records


@pytest.mark.parametrize("node, arguments, sentence", [
    (PersonalizeShowAttention, ("each step", "each map", "viridis", 0.6, 256),
     "160 maps of 256×256 take .*; set longest_side lower"),
    (PersonalizeShowMasks, ("each step", 0.6), "80 maps of 256×256 take .*; connect fewer pictures")])
def test_a_drawing_that_is_too_large_is_refused_before_it_is_made(monkeypatch, node, arguments, sentence):
    record = recorded(Record("Attention of Latent", every_step=True, complete=True), steps=40, images=2)
    free = 60 * 256 * 256 * 70
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda device: free)
    with pytest.raises(ValueError, match=f"^{sentence}") as refused:
        node.execute(record, *arguments)
    assert "\n" not in str(refused.value)
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda device: 2**50)
    monkeypatch.setattr(nodes_show, "LARGEST_DRAWING", free)
    with pytest.raises(ValueError, match=f"^{sentence}"):
        node.execute(record, *arguments)
