"""Nodes that let the model see a batch or a latent part by part: what this pack does there, or that it says so."""
from __future__ import annotations

import logging

import pytest
import torch
from comfy.patcher_extension import WrappersMP

from personalize.nodes.attention.words import words_of
from personalize.nodes.families.find import unet_of
from personalize.nodes.recording.record import Record
from personalize.nodes.recording.sampling_recorder import recording_model
from personalize.nodes.training.seeds import generator
from personalize.nodes.visual_prompts.ip_adapter_files import read_ip_adapter
from personalize.nodes.visual_prompts.nodes_ip_adapter import PersonalizeApplyIPAdapter
from personalize.nodes.visual_prompts.tokens import VisualTokens
from support.ip_adapter_files import TABLES, official, saved
from support.stock_nodes import node
from support.swap_world import ByHand, close, far
from support.vico_scene import dog


def windows(model, length=2, overlap=0, dim=0):
    """Core's context windows, without the extra frame that newer ComfyUIs put before each."""
    windowed = node("ContextWindowsManual", model=model, context_length=length, context_overlap=overlap, dim=dim)
    windowed.model_options["context_handler"].causal_window_fix = False
    return windowed


@pytest.fixture
def said(caplog):
    """What was said at the sampler."""
    caplog.set_level(logging.WARNING, logger="personalize")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "personalize"]


# ------------------------------------------------------------------------------------------------ context windows
@pytest.mark.parametrize("settings", [{}, {"mask": torch.eye(4)[:, :, None].expand(4, 4, 4)}],
                         ids=["subject", "a mask for each"])
@pytest.mark.parametrize("order", ["before", "after"])
def test_swap_in_windows_of_a_batch(world, execute, order, settings):
    """Pictures do not know of each other: two by two they are what they are together."""
    how = {"batch": 4, "steps": 2}
    together, record = world.swap(**settings)
    expected, branch = world.sample(together, **how), record.branch_latent
    if order == "before":
        model, record = world.swap(windows(world.model), **settings)
    else:
        model, record = world.swap(**settings)
        model = windows(model)
    found = world.sample(model, **how)
    assert close(found, expected) and far(found, world.sample(**how)) and close(record.branch_latent, branch)
    assert sorted(record.current.masks) == [1]


def test_swap_in_windows_of_a_latent(world, execute):
    """Each window takes what the second picture has in the same window."""
    how = {"steps": 2, "latent": torch.zeros(1, 4, 24, 16)}
    model, record = world.swap(windows(world.model, 16, 8, dim=2), where="everywhere", start_percent=0.5)
    found = world.sample(model, **how)
    expected = ByHand(world, how, windows(world.model, 16, 8, dim=2), mask=None, first=2)
    assert close(found, expected.picture) and close(record.branch_latent, expected.branch)
    assert far(found, world.sample(windows(world.model, 16, 8, dim=2), **how))


def test_the_mask_belongs_to_the_latent_and_not_to_the_window(world, execute):
    """With a mask of the upper third, the window below it is not swapped."""
    mask, how = torch.zeros(1, 24, 16), {"steps": 1, "latent": torch.zeros(1, 4, 24, 16)}
    mask[:, :8] = 1
    model = windows(world.swap(mask=mask, start_percent=0.0)[0], 12, 0, dim=2)
    found, plain = world.sample(model, **how), world.sample(windows(world.model, 12, 0, dim=2), **how)
    assert torch.equal(found[:, :, 12:], plain[:, :, 12:]) and far(found[:, :, :12], plain[:, :, :12])


@pytest.mark.parametrize("order", ["before", "after"])
def test_attention_is_recorded_in_windows(world, execute, order):
    """Maps of windows are put where they belong."""
    def recorded(model, windowed):
        record = Record("a test")
        if windowed and order == "before":
            model = windows(model)
        model = recording_model(model, record, unet_of(world.model).layers, words_of(["dog"]))
        world.sample(windows(model) if windowed and order == "after" else model, batch=4, steps=1)
        return record.current.mean_map("dog")

    expected = recorded(world.model, False)
    assert close(recorded(world.model, True), expected) and far(expected[:1], expected[1:2])


def test_attention_is_recorded_in_windows_of_a_latent(world, execute):
    record = Record("a test")
    layers = [layer for layer in unet_of(world.model).layers if layer.stride == 1]  # coarse maps are smoothed
    model = recording_model(windows(world.model, 24, 0, dim=2), record, layers, words_of(["dog"]))
    noise = torch.randn(1, 4, 48, 16, generator=generator(0))
    world.sample(model, latent=torch.zeros(1, 4, 48, 16), noise=noise, steps=1)
    for rows in (slice(0, 24), slice(24, 48)):
        alone = Record("a test")
        world.sample(recording_model(world.model, alone, layers, words_of(["dog"])),
                     latent=torch.zeros(1, 4, 24, 16), noise=noise[:, :, rows], steps=1)
        assert close(record.current.mean_map("dog")[:, rows], alone.current.mean_map("dog"))


def test_every_picture_keeps_its_tokens_in_windows(world, execute, tmp_path):
    """IP-Adapter with tokens of four pictures for a batch of four."""
    adapter = read_ip_adapter(saved(official(world.model, TABLES["sd15"], "plus"), tmp_path / "a.safetensors"))
    tokens = VisualTokens(10 * torch.randn(4, 5, adapter.token_width, generator=generator(1)), "IP-Adapter")
    model = PersonalizeApplyIPAdapter.execute(world.model, adapter, tokens, 1.0, 0.0, 1.0).args[0]
    how = {"batch": 4, "steps": 1}
    found = world.sample(windows(model), **how)
    assert close(found, world.sample(model, **how)) and far(found, world.sample(**how))


def test_references_are_read_in_windows(scene, execute):
    """Apply ViCo."""
    model = scene.patched([dog()])
    expected = scene.plain(model, batch=4)
    assert close(scene.plain(windows(model), batch=4), expected) and not close(expected, scene.plain(batch=4))


# ------------------------------------------------------------------------------------------------ tiles, rows
def with_tiles(model):
    """As tiled diffusion does: the model's call is replaced by one with both halves of the picture as further rows."""
    def tiled(apply, arguments):
        x, timestep, c = arguments["input"], arguments["timestep"], arguments["c"]
        tiles = torch.cat(x.chunk(2, -1))
        twice = {key: torch.cat([value, value]) if isinstance(value, torch.Tensor) else value
                 for key, value in c.items()}
        return torch.cat(apply(tiles, torch.cat([timestep, timestep]), **twice).chunk(2), -1)

    patched = model.clone()
    patched.set_model_unet_function_wrapper(tiled)
    return patched


def with_small_tiles(model):
    """The same one tile after the other, so that only their size tells."""
    def tiled(apply, arguments):
        tiles = arguments["input"].chunk(2, -1)
        return torch.cat([apply(tile, arguments["timestep"], **arguments["c"]) for tile in tiles], -1)

    patched = model.clone()
    patched.set_model_unet_function_wrapper(tiled)
    return patched


@pytest.mark.parametrize("tiles, why", [(with_tiles, "changes the batch inside the model"),
                                        (with_small_tiles, "cuts the picture into tiles")])
def test_swap_says_that_tiles_hide_the_picture(world, said, tiles, why):
    how = {"steps": 2, "side": 32}
    found = world.sample(tiles(world.swap(where="everywhere", start_percent=0.0)[0]), **how)
    assert torch.equal(found, world.sample(tiles(world.model), **how))
    assert len(said()) == 1 and said()[0].startswith("Self-Attention Swap did not act: ") and why in said()[0]


@pytest.mark.parametrize("name", ["Apply IP-Adapter", "Apply ViCo"])
def test_others_say_that_tiles_hide_the_picture(world, scene, said, tmp_path, name):
    if name == "Apply ViCo":
        def run(model):
            return scene.plain(model, batch=2)

        model, plain = scene.patched([dog()]), scene.model
    else:
        def run(model):
            return world.sample(model, steps=1, side=32)

        adapter = read_ip_adapter(saved(official(world.model, TABLES["sd15"], "plus"), tmp_path / "a.safetensors"))
        tokens = VisualTokens(torch.randn(1, 5, adapter.token_width, generator=generator(1)), "IP-Adapter")
        plain = world.model
        model = PersonalizeApplyIPAdapter.execute(plain, adapter, tokens, 1.0, 0.0, 1.0).args[0]
    assert torch.equal(run(with_tiles(model)), run(with_tiles(plain)))
    assert len(said()) == 1 and name in said()[0] and "did not act" in said()[0]


def with_windows_inside(model, length=2):
    """As AnimateDiff-Evolved does: windows of the batch within the call for all conditionings, told in the options."""
    def windowed(executor, base, conds, x, timestep, model_options):
        parts = []
        for first in range(0, len(x), length):
            frames = list(range(first, first + length))
            options = {**model_options["transformer_options"], "ad_params": {"sub_idxs": frames}}
            parts.append(executor(base, conds, x[frames], timestep[frames],
                                  {**model_options, "transformer_options": options}))
        return [torch.cat(each) for each in zip(*parts)]

    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "windows of a test", windowed)
    return patched


@pytest.mark.parametrize("order", ["before", "after"])
def test_swap_with_windows_inside_the_call(world, order):
    how, settings = {"batch": 4, "steps": 1}, {"start_percent": 0.0, "mask": torch.eye(4)[:, :, None].expand(4, 4, 4)}
    expected = world.sample(world.swap(**settings)[0], **how)
    model = (world.swap(with_windows_inside(world.model), **settings)[0] if order == "before"
             else with_windows_inside(world.swap(**settings)[0]))
    found = world.sample(model, **how)
    assert close(found, expected) and far(found, world.sample(**how))


# ------------------------------------------------------------------------------------------------ samplers
def test_a_run_without_a_step_to_swap_says_so(world, said):
    """What counts is the noise level, not the place in the run: samplers may work step by step."""
    latent = world.sample(steps=3, last_step=1)
    how = {"latent": latent, "steps": 3, "start_step": 1, "last_step": 2, "disable_noise": True}
    plain = world.sample(**how)
    assert torch.equal(world.sample(world.swap(where="everywhere", start_percent=0.6)[0], **how), plain)
    assert len(said()) == 1 and "of this run's 1 steps none begins between start_percent and end_percent" in said()[0]
    assert torch.equal(world.sample(world.swap()[0], **how), plain)
    assert "ended before the model had shown where the subject is" in said()[1]
    assert far(world.sample(world.swap(where="everywhere")[0], **how), plain)
    assert len(said()) == 2


def test_a_sampler_that_goes_past_the_guider_is_named(world, said):
    import comfy.sample
    import comfy.samplers

    def past(model, x, sigmas, extra_args, callback, disable):
        guider = model.inner_model
        return comfy.samplers.sampling_function(
            guider.inner_model, x, sigmas[:1], guider.conds["negative"], guider.conds["positive"], 5.0,
            model_options=extra_args["model_options"], seed=extra_args["seed"])

    def run(model):
        with torch.inference_mode():
            latent = torch.zeros(1, 4, 16, 16)
            return comfy.sample.sample_custom(
                model, comfy.sample.prepare_noise(latent, 3), 5.0, comfy.samplers.KSAMPLER(past),
                torch.tensor([14.6, 0.0]), world.positive, world.negative, latent, disable_pbar=True, seed=3)

    assert torch.equal(run(world.swap(where="everywhere", start_percent=0.0)[0]), run(world.model))
    assert len(said()) == 1 and "calls the model past its guider" in said()[0]
