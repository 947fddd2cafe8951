"""Patches of other nodes that change tensors in place: same values, and gradients that finite differences confirm."""
from __future__ import annotations

import pytest
import torch

from personalize.nodes.families.block_patches import differentiable_patches


def in_place(h, skip, options):
    """As FreeU: half of the channels are scaled by a mean of all, in place."""
    h[:, : h.shape[1] // 2] = h[:, : h.shape[1] // 2] * (1 + options["scale"] * h.mean(1, keepdim=True))
    return h, skip.square_()


def only_h(h, options):
    return h.mul_(options["scale"])


def tensors(count: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(1, 4, 3, 3, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(count)]


def test_the_patch_breaks_autograd_without_help():
    h, skip = tensors(2)
    with pytest.raises(RuntimeError, match="inplace"):
        sum(t.sum() for t in in_place(h * 1, skip * 1, {"scale": 0.3})).backward()


@pytest.mark.parametrize("name, patch, count", [("output_block_patch", in_place, 2), ("input_block_patch", only_h, 1),
                                                ("input_block_patch_after_skip", only_h, 1)])
def test_gradients_through_a_patch_that_works_in_place(name, patch, count):
    wrapped = differentiable_patches({name: [patch]})[name][0]
    options = {"scale": 0.3}

    def call(*given):
        return wrapped(*given, options)

    inputs = tensors(count)
    expected = patch(*(t.detach().clone() for t in inputs), options)
    for ours, theirs in zip(*(v if count > 1 else (v,) for v in (call(*inputs), expected))):
        assert torch.equal(ours, theirs)
    assert torch.autograd.gradcheck(call, inputs)


def test_the_backward_pass_sees_the_options_of_its_own_block():
    wrapped = differentiable_patches({"input_block_patch": [only_h]})["input_block_patch"][0]
    (h,), options = tensors(1), {"scale": 2.0}
    result = wrapped(h, options)
    options["scale"] = 100.0
    result.sum().backward()
    assert torch.equal(h.grad, torch.full_like(h, 2.0))


def test_other_patches_stay_as_they_are():
    patches = {"attn2_patch": [only_h]}
    assert differentiable_patches(patches) == patches
