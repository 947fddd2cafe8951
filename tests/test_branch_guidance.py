"""The second picture leaves the first alone, bit for bit, under every guider and patch of guidance."""
from __future__ import annotations

import pytest
import torch

from support.sampling import guided
from support.stock_nodes import node
from support.swap_world import far

EMPTY = torch.zeros(1, 16, 16)


@pytest.mark.parametrize("name, inputs", [
    ("SelfAttentionGuidance", {}), ("PerturbedAttentionGuidance", {}), ("RescaleCFG", {"multiplier": 0.7}),
    ("Mahiro", {}), ("TCFG", {}), ("APG", {"momentum": 0.8}), ("FreSca", {"scale_low": 1.3}),
    ("Epsilon Scaling", {"scaling_factor": 1.02}), ("TemporalScoreRescaling", {}), ("RenormCFG", {"renorm_cfg": 0.8}),
    ("CFGZeroStar", {}), ("CFGNorm", {}), ("HyperTile", {"tile_size": 64, "swap_size": 2, "max_depth": 0,
                                                          "scale_depth": False}),
    ("TomePatchModel", {"ratio": 0.5}), ("FreeU_V2", {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}),
    ("EasyCache", {"reuse_threshold": 3.0}), ("LazyCache", {"reuse_threshold": 3.0})], ids=str)
def test_patches_of_guidance(world, execute, name, inputs):
    """Also those that keep something from step to step; the second picture is what it would be alone."""
    steps = 5 if "Cache" in name else 3 if name == "APG" else 1

    def patched(model):
        return node(name, model=model, **inputs)

    def sample(model, positive=None):
        torch.manual_seed(7)
        return world.sample(model, positive, steps=steps)

    alone = sample(patched(world.model))
    assert far(alone, sample(world.model))
    visual = sample(patched(world.model), world.visual)
    for before in (False, True):
        model, record = world.swap(patched(world.model) if before else world.model, mask=EMPTY, start_percent=0.0)
        assert torch.equal(sample(model if before else patched(model)), alone)
        assert torch.equal(record.branch_latent, visual)


@pytest.mark.parametrize("name, inputs", [("SelfAttentionGuidance", {}), ("RescaleCFG", {"multiplier": 0.7})])
def test_an_unguided_second_picture_has_no_patches_of_guidance(world, execute, name, inputs):
    patched = node(name, model=world.model, **inputs)
    model, record = world.swap(patched, mask=EMPTY, start_percent=0.0, guidance="unguided")
    assert torch.equal(world.sample(model, steps=1), world.sample(patched, steps=1))
    assert torch.equal(record.branch_latent, world.sample(positive=world.visual, steps=1, cfg=1.0))


class Average:
    """A running average as packs keep it, in an object."""

    def __init__(self):
        self.value = 0

    def __call__(self, arguments):
        self.value = 0.5 * self.value + arguments["denoised"]
        return self.value


def in_a_variable():
    value = 0

    def average(arguments):
        nonlocal value
        value = 0.5 * value + arguments["denoised"]
        return value
    return average


def in_a_dict():
    kept = {"value": 0}

    def average(arguments):
        kept["value"] = 0.5 * kept["value"] + arguments["denoised"]
        return kept["value"]
    return average


def in_an_object_around():
    kept = Average()
    return lambda arguments: kept(arguments)


@pytest.mark.parametrize("made", [Average, lambda: Average().__call__, in_a_variable, in_a_dict, in_an_object_around],
                         ids=["object", "method", "variable", "dict", "object around"])
def test_what_guidance_remembers_is_kept_apart(world, made):
    def sample(positive=None, **swap):
        patched, record = world.swap(**swap) if swap else (world.model.clone(), None)
        patched.set_model_sampler_post_cfg_function(made())
        return world.sample(patched, positive, steps=3, cfg=1.0), record

    found, record = sample(mask=EMPTY)
    assert torch.equal(found, sample()[0]) and far(found, world.sample(steps=3, cfg=1.0))
    assert torch.equal(record.branch_latent, sample(world.visual)[0])


def guider(name, model, positive, negative):
    from comfy_extras import nodes_custom_sampler, nodes_perpneg

    if name == "BasicGuider":
        return nodes_custom_sampler.BasicGuider.execute(model, positive).args[0]
    if name == "CFGGuider":
        return nodes_custom_sampler.CFGGuider.execute(model, positive, negative, 5.0).args[0]
    if name.startswith("DualCFGGuider"):
        return nodes_custom_sampler.DualCFGGuider.execute(model, positive, positive, negative, 3.0, 5.0,
                                                          name.split()[1]).args[0]
    return nodes_perpneg.PerpNegGuider.execute(model, positive, negative, negative, 5.0, 1.0).args[0]


@pytest.mark.parametrize("name", ["BasicGuider", "CFGGuider", "DualCFGGuider regular", "DualCFGGuider nested",
                                  "PerpNegGuider"])
def test_every_guider(world, name):
    model, record = world.swap(mask=EMPTY)
    alone = guided(guider(name, world.model, world.positive, world.negative), 2)
    assert torch.equal(guided(guider(name, model, world.positive, world.negative), 2), alone)
    visual = guided(guider(name, world.model, world.visual, world.negative), 2)
    assert torch.equal(record.branch_latent, visual) and far(visual, alone)


@pytest.mark.newer
def test_a_guider_of_two_models(world):
    from comfy_extras import nodes_custom_sampler

    if not hasattr(nodes_custom_sampler, "DualModelGuider"):
        pytest.skip("this ComfyUI has no DualModelGuider")

    def two(model):
        return guided(nodes_custom_sampler.DualModelGuider.execute(model, world.positive, 5.0, world.weak,
                                                                    world.negative).args[0], 2)

    assert torch.equal(two(world.swap(mask=EMPTY)[0]), two(world.model))


def test_a_swap_acts_beside_guidance_that_calls_the_model_again(world, execute):
    """Perturbed-Attention Guidance makes a second call in each evaluation, which takes that of the branch."""
    plain = node("PerturbedAttentionGuidance", model=world.model)
    swapped = world.swap(plain, where="everywhere", start_percent=0.0)[0]
    assert far(world.sample(swapped, steps=1), world.sample(plain, steps=1))
