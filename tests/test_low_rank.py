"""Trained weights as a LoRA: the nearest of its rank, as the stock loader adds it, and what is lost is said."""
from __future__ import annotations

import comfy.sd
import pytest
import torch

from personalize.nodes.training.low_rank import reduce_rank
from personalize.nodes.training.parts.weights import KeyValuePart, UNetPart
from personalize.nodes.training.plan import Settings
from support.trainings import sample, train


def of_rank(rank, *shape):
    """A difference of this rank, and a little noise in all directions."""
    draw = torch.Generator().manual_seed(1)
    rows, columns = shape[0], torch.Size(shape[1:]).numel()
    matrix = torch.randn(rows, rank, generator=draw) @ torch.randn(rank, columns, generator=draw)
    return matrix.reshape(shape)


@pytest.mark.parametrize("shape", [(40, 30), (24, 16, 3, 3)])
def test_a_difference_of_low_rank_is_kept_whole(shape):
    found = reduce_rank({"a.diff": of_rank(2, *shape), "a.diff_b": torch.ones(4)}, 2)
    up, down = found.weights["a.lora_up.weight"], found.weights["a.lora_down.weight"]
    assert found.lost < 1e-5 and found.weights["a.alpha"] == 2
    assert up.shape == (shape[0], 2, *([1] * (len(shape) - 2))) and down.shape == (2, *shape[1:])
    product = (up.flatten(1) @ down.flatten(1)).reshape(shape)
    torch.testing.assert_close(product, of_rank(2, *shape), rtol=1e-4, atol=1e-4)
    assert torch.equal(found.weights["a.diff_b"], torch.ones(4))


def test_what_is_lost_is_what_the_singular_values_left_out_say():
    whole = {"a.diff": of_rank(30, 40, 30), "b.diff": 0.1 * of_rank(3, 50, 50)}
    for rank in (1, 4, 8):
        found = reduce_rank(whole, rank)
        values = {name: torch.linalg.svdvals(tensor.double()) for name, tensor in whole.items()}
        left = {name: v[rank:].square().sum() for name, v in values.items()}
        total = sum(v.square().sum() for v in values.values())
        assert found.lost == pytest.approx(float((sum(left.values()) / total).sqrt()), rel=1e-4)
        assert found.worst_layer == "a"
        assert found.worst == pytest.approx(float((left["a.diff"] / values["a.diff"].square().sum()).sqrt()), rel=1e-4)


def test_layers_that_would_not_become_smaller_stay():
    small, large = torch.randn(4, 4), torch.randn(64, 64)
    found = reduce_rank({"small.diff": small, "large.diff": large, "norm.diff": torch.ones(8)}, 4)
    assert torch.equal(found.weights["small.diff"], small) and torch.equal(found.weights["norm.diff"], torch.ones(8))
    assert "large.diff" not in found.weights
    with pytest.raises(ValueError, match="no difference of a weight that a LoRA of this rank would make smaller"):
        reduce_rank({"small.diff": small}, 4)


@pytest.mark.parametrize("part", [UNetPart(1e-3), KeyValuePart(1e-2)])
def test_the_stock_loader_adds_what_is_kept(sd15, part):
    """With a rank that keeps all of what two steps have changed, the picture is that of the whole differences."""
    model, clip, _ = sd15
    weights = train(sd15, Settings(steps=2, batch_size=2), parts=(part,))[0].weights()
    found = reduce_rank(weights, 12)
    assert 0 < found.lost < 0.7 and any(name.endswith("lora_up.weight") for name in found.weights)
    whole, reduced, rebuilt = (sample(_with(model, each), clip)
                               for each in (weights, found.weights, _as_differences(found.weights)))
    torch.testing.assert_close(reduced, rebuilt, rtol=1e-3, atol=1e-3)
    plain = sample(model, clip)
    assert (reduced - whole).norm() < (plain - whole).norm()


def _with(model, weights):
    return comfy.sd.load_lora_for_models(model, None, dict(weights), 1.0, 0.0)[0]


def _as_differences(weights):
    """By hand: up times down in the place of both."""
    found = {name: tensor for name, tensor in weights.items() if ".lora_" not in name and not name.endswith(".alpha")}
    for name, up in weights.items():
        if name.endswith(".lora_up.weight"):
            layer = name.removesuffix(".lora_up.weight")
            down = weights[f"{layer}.lora_down.weight"]
            found[f"{layer}.diff"] = torch.einsum("or,ri...->oi...", up.flatten(1), down)
    return found


