"""CoRe's rescaling (Eq. 6): inside the window every vector keeps the length it had at the window's start."""
from __future__ import annotations

import pytest
import torch
from torch import nn

from personalize.nodes.training.parts.embedding import AttachedEmbedding, EmbeddingPart


def grow(settings: EmbeddingPart, steps: int) -> list[list[float]]:
    """Lengths of two vectors of different encoders after each step; every step makes them 1.5 times as long."""
    draw = torch.Generator().manual_seed(0)
    rows = {key: nn.Parameter(torch.randn(1, width, generator=draw)) for key, width in (("clip_l", 8), ("clip_g", 12))}
    with torch.no_grad():
        rows["clip_g"] *= 3
        attached, lengths = AttachedEmbedding(settings, {"<my-dog>": rows}), []
        for step in range(steps + 1):
            if step:
                for row in rows.values():
                    row *= 1.5
                attached.after_step(step)
            lengths.append([sum(x * x for x in row[0].tolist()) ** 0.5 for row in rows.values()])
    return lengths


@pytest.mark.parametrize("start, stop", [(3, 6), (0, 4), (2, 3)])
def test_lengths_are_held_inside_the_window_and_free_outside(start, stop):
    lengths = grow(EmbeddingPart(rescaled=(start + 1, stop)), 8)
    for step in range(1, 9):
        held = start < step <= stop
        expected = [lengths[start][i] if held else 1.5 * lengths[step - 1][i] for i in (0, 1)]
        assert lengths[step] == pytest.approx(expected, rel=1e-5)


def test_without_a_window_lengths_are_free():
    lengths = grow(EmbeddingPart(), 5)
    assert lengths[5] == pytest.approx([1.5 ** 5 * first for first in lengths[0]], rel=1e-5)


def test_a_resumed_run_keeps_the_length_of_its_window():
    settings = EmbeddingPart(rescaled=(2, 3))
    row = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    first = AttachedEmbedding(settings, {"<my-dog>": {"clip_l": row}})
    first.after_step(1)
    resumed = AttachedEmbedding(settings, {"<my-dog>": {"clip_l": nn.Parameter(torch.zeros(1, 2))}})
    resumed.load_state_dict(first.state_dict())
    with torch.no_grad():
        resumed.parameters["<my-dog>"]["clip_l"].copy_(torch.tensor([[0.0, 90.0]]))
    resumed.after_step(2)
    assert resumed.parameters["<my-dog>"]["clip_l"].tolist() == [[0.0, 5.0]]
