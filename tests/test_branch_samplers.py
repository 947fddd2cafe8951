"""The second picture leaves the first alone, and is what it would be alone, under every sampler of ComfyUI."""
from __future__ import annotations

import inspect

import pytest
import torch

from support.stock_nodes import defaults
from support.swap_world import World, far, half_mask

SIDE = 8
EMPTY = torch.zeros(1, SIDE, SIDE)
REFUSED = "The sampler dpm_adaptive chooses its noise levels for each picture by itself"
HISTORY = ("dpmpp_3m_sde", "sa_solver", "uni_pc", "uni_pc_bh2", "lms", "heun", "euler_ancestral_cfg_pp")


@pytest.fixture
def world(exact):
    """With small latents: which sampler runs does not depend on their size."""
    return World(exact("sd15"), SIDE)


def pytest_generate_tests(metafunc):
    """Every sampler that this ComfyUI has, by name and by node."""
    if "sampler_name" in metafunc.fixturenames:
        from comfy.samplers import SAMPLER_NAMES

        metafunc.parametrize("sampler_name", SAMPLER_NAMES)
    if "sampler_node" in metafunc.fixturenames:
        found = sampler_nodes()
        metafunc.parametrize("sampler_node", found.values(), ids=found)


def sampler_nodes() -> dict:
    """Nodes whose only output is a SAMPLER, by name."""
    from comfy_extras import nodes_advanced_samplers, nodes_custom_sampler

    nodes = {name: node for module in (nodes_custom_sampler, nodes_advanced_samplers)
             for name, node in inspect.getmembers(module, inspect.isclass) if hasattr(node, "GET_SCHEMA")}
    return {name: node for name, node in nodes.items()
            if name not in ("ComfyNode",) and [each.io_type for each in node.GET_SCHEMA().outputs] == ["SAMPLER"]}


def check(run, world):
    """Both pictures bit for bit as alone, also what is drawn from the global generator after them. run: samples a
    positive with a model."""
    def seeded(model, positive):
        torch.manual_seed(7)
        return run(model, positive), torch.rand(1)

    model, record = world.swap(mask=EMPTY, start_percent=0.0)
    alone, beside = seeded(world.model, world.positive), seeded(model, world.positive)
    assert torch.equal(beside[0], alone[0]) and torch.equal(beside[1], alone[1])
    visual = seeded(world.model, world.visual)[0]
    assert torch.equal(record.branch_latent, visual) and far(visual, alone[0])


def test_every_sampler(world, sampler_name):
    """One step that does not end without noise, so that noise is added; more where samplers look back."""
    steps = {"steps": 3} if sampler_name in HISTORY else {"steps": 2, "last_step": 1}

    def run(model, positive):
        return world.sample(model, positive, sampler=sampler_name, cfg=1.0, **steps)

    if sampler_name == "dpm_adaptive":
        with pytest.raises(ValueError, match=REFUSED):
            run(world.swap(mask=EMPTY, start_percent=0.0)[0], world.positive)
    else:
        check(run, world)


def test_every_node_of_a_sampler(world, sampler_node):
    import comfy.sample

    takes_model = any(each.id == "model" for each in sampler_node.GET_SCHEMA().inputs)
    inputs = {**defaults(sampler_node), **({"model": world.model} if takes_model else {})}

    def run(model, positive):
        with torch.inference_mode():
            latent = torch.zeros(1, 4, 16, 16)
            return comfy.sample.sample_custom(
                model, comfy.sample.prepare_noise(latent, 3), 1.0, sampler_node.execute(**inputs).args[0],
                torch.tensor([14.6, 4.0, 1.0]), positive, world.negative, latent, disable_pbar=True, seed=3)

    if sampler_node.__name__ == "SamplerDPMAdaptative":
        with pytest.raises(ValueError, match=REFUSED):
            run(world.swap(mask=EMPTY, start_percent=0.0)[0], world.positive)
    else:
        check(run, world)


@pytest.mark.parametrize("settings", [{"s_churn": 1.0, "s_noise": 1.1}, {"eta": 0.5, "s_noise": 0.9}], ids=str)
def test_noise_that_a_sampler_draws_by_itself(world, settings):
    import comfy.sample
    import comfy.samplers

    name = "heun" if "s_churn" in settings else "euler_ancestral"

    def run(model, positive):
        with torch.inference_mode():
            latent = torch.zeros(2, 4, 16, 16)
            return comfy.sample.sample_custom(
                model, comfy.sample.prepare_noise(latent, 3), 1.0, comfy.samplers.ksampler(name, settings),
                torch.tensor([14.6, 4.0, 0.0]), positive, world.negative, latent, disable_pbar=True, seed=3)

    check(run, world)


def inpainting(model):
    from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion

    return DifferentialDiffusion.execute(model).args[0]


@pytest.mark.parametrize("how", [
    {"batch": 3}, {"cfg": 5.0}, {"latent": torch.ones(1, 4, 16, 16), "denoise": 0.6},
    {"latent": torch.ones(1, 4, 16, 16), "noise_mask": half_mask(128)[None] * 0.7},
    {"steps": 4, "start_step": 1, "last_step": 3}, {"steps": 4, "start_step": 2, "disable_noise": True,
                                                    "latent": torch.ones(1, 4, 16, 16)}], ids=str)
def test_every_way_to_sample(world, how):
    """Ancestral, so that noise counts; with a noise mask under Differential Diffusion too."""
    how = {"sampler": "euler_ancestral", "steps": 2, "cfg": 1.0, **how}
    check(lambda model, positive: world.sample(model, positive, **how), world)
    if "noise_mask" in how:
        check(lambda model, positive: world.sample(inpainting(model), positive, **how), world)


def test_a_run_that_is_interrupted_leaves_nothing(world):
    """No thread, and the next run as ever."""
    import threading

    class Stopped(Exception):
        pass

    def stop(step, *_):
        raise Stopped

    model, _record = world.swap(mask=EMPTY)
    before = threading.active_count()
    with pytest.raises(Stopped):
        world.sample(model, callback=stop, steps=3)
    assert threading.active_count() == before
    check(lambda model, positive: world.sample(model, positive, steps=1), world)
