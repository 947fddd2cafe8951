"""Beside other people's packs that sample in their own way: what swaps, references and records do there."""
from __future__ import annotations

import nodes
import pytest
import torch

from personalize.nodes.attention.words import words_of
from personalize.nodes.families.find import unet_of
from personalize.nodes.recording.record import Record
from personalize.nodes.recording.sampling_recorder import recording_model
from support.packs import ANIMATEDIFF, IMPACT, IPADAPTER
from support.stock_nodes import node
from support.swap_world import close, far, half_mask
from support.vico_scene import dog


# ------------------------------------------------------------------------------------------------ AnimateDiff-Evolved
def in_context(model, length=2):
    """Its sliding context windows, two pictures at a time."""
    options = node("ADE_StandardStaticContextOptions", context_length=length, context_overlap=0)
    return node("ADE_UseEvolvedSampling", model=model, beta_schedule="use existing", context_options=options)


@pytest.mark.pack(ANIMATEDIFF)
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("settings", [{"where": "everywhere"}, {}, {"mask": torch.eye(4)[:, :, None].expand(4, 4, 4)}],
                         ids=["everywhere", "subject", "a mask for each"])
def test_animatediff_windows_and_swap(beside_packs, world, order, settings):
    how = {"batch": 4, "steps": 2}
    expected = world.sample(world.swap(**settings)[0], **how)
    model = world.swap(in_context(world.model), **settings)[0] if order == "before" else in_context(
        world.swap(**settings)[0])
    found = world.sample(model, **how)
    assert close(found, expected) and far(found, world.sample(in_context(world.model), **how))
    empty = world.swap(mask=torch.zeros(1, 16, 16), start_percent=0.0)[0]
    assert torch.equal(world.sample(in_context(empty), sampler="euler_ancestral", **how),
                       world.sample(in_context(world.model), sampler="euler_ancestral", **how))


@pytest.mark.pack(ANIMATEDIFF)
def test_animatediff_windows_and_references(beside_packs, scene):
    model = scene.patched([dog()])
    found, expected = scene.plain(in_context(model), batch=4), scene.plain(model, batch=4)
    assert close(found, expected) and not close(expected, scene.plain(batch=4))


@pytest.mark.pack(ANIMATEDIFF)
def test_animatediff_windows_and_recorded_attention(beside_packs, world):
    found = []
    for windowed in (False, True):
        record = Record("a test")
        model = recording_model(world.model, record, unet_of(world.model).layers, words_of(["dog"]))
        world.sample(in_context(model) if windowed else model, batch=4, steps=1)
        found.append(record.current.mean_map("dog"))
    assert close(found[1], found[0])


# ------------------------------------------------------------------------------------------------ Impact
def regional(model, world, steps=3):
    """Its regional sampler: step by step, the base and then each region with an inpainting mask."""
    pipe = (model, world.clip, None, world.positive, world.negative)
    sampler = node("KSamplerAdvancedProvider", cfg=5.0, sampler_name="euler", scheduler="normal", basic_pipe=pipe)
    prompts = node("RegionalPrompt", mask=half_mask(128), advanced_sampler=sampler)
    with torch.inference_mode():
        return node("RegionalSampler", seed=3, seed_2nd=0, seed_2nd_mode="ignore", steps=steps, base_only_steps=1,
                    denoise=1.0, samples={"samples": torch.zeros(1, 4, 16, 16)}, base_sampler=sampler,
                    regional_prompts=prompts, overlap_factor=0, restore_latent=True, additional_mode="DISABLE",
                    additional_sampler="AUTO", additional_sigma_ratio=0.3)["samples"]


@pytest.mark.pack(IMPACT)
def test_impact_regional_sampler_and_swap(beside_packs, world, caplog):
    """Runs of one step: it says so, or with start 0 and a mask it acts in each."""
    plain = regional(world.model, world)
    assert torch.equal(regional(world.swap(where="everywhere")[0], world), plain)
    assert any("none lies between its start and its end" in message for message in caplog.messages)
    assert far(regional(world.swap(where="everywhere", start_percent=0.0)[0], world), plain)
    caplog.clear()
    assert torch.equal(regional(world.swap(start_percent=0.0)[0], world), plain)
    assert any("before the model had shown where the subject is" in message for message in caplog.messages)


@pytest.mark.pack(IMPACT)
def test_impact_regional_sampler_and_references(beside_packs, scene):
    class Both:
        clip, positive, negative = None, scene.positive, scene.negative

    assert far(regional(scene.patched([dog()]), Both), regional(scene.model, Both))


# ------------------------------------------------------------------------------------------------ IPAdapter_plus
def ip_adapted(world, model):
    """Its attention in every layer, with random keys and values."""
    class Adapter:
        class ip_layers:
            to_kvs = {}

        @classmethod
        def get_multigpu_clone(cls, device):
            return cls

    patches = [cls for name, cls in nodes.NODE_CLASS_MAPPINGS.items() if name == "IPAdapterAdvanced"]
    module = __import__("sys").modules[patches[0].__module__]
    patched, width = model.clone(), world.positive[0][0].shape[-1]
    dtype = next(unet_of(model).denoiser.parameters()).dtype
    draw = torch.Generator().manual_seed(1)
    for number, layer in enumerate(unet_of(world.model).layers):
        for kind in "kv":
            linear = torch.nn.Linear(width, layer.channels, bias=False)
            torch.nn.init.normal_(linear.weight, std=0.3, generator=draw)
            Adapter.ip_layers.to_kvs[f"{2 * number + 1}_to_{kind}_ip"] = linear.to(dtype)
    tokens = torch.randn(1, 4, width, generator=draw).to(dtype)
    for number, layer in enumerate(unet_of(world.model).layers):
        module.set_model_patch_replace(patched, {
            "ipadapter": Adapter, "weight": 1.0, "cond": tokens, "cond_alt": None, "uncond": torch.zeros_like(tokens),
            "weight_type": "linear", "mask": None, "sigma_start": 999.0, "sigma_end": 0.0, "unfold_batch": False,
            "embeds_scaling": "V only", "module_key": str(2 * number + 1)}, (*layer.block, layer.depth))
    return patched


@pytest.mark.pack(IPADAPTER)
@pytest.mark.parametrize("order", ["before", "after"])
def test_ipadapter_plus_and_swap(beside_packs, world, order):
    plain = world.sample(ip_adapted(world, world.model), steps=2)
    assert far(plain, world.sample(steps=2))
    empty, swap = ({"mask": torch.zeros(1, 16, 16)}, {"where": "everywhere"})
    for settings in (empty, swap):
        model = world.swap(ip_adapted(world, world.model), **settings)[0] if order == "before" else ip_adapted(
            world, world.swap(**settings)[0])
        found = world.sample(model, steps=2)
        assert torch.equal(found, plain) if settings is empty else far(found, plain)


@pytest.mark.pack(IPADAPTER)
def test_ipadapter_plus_and_recorded_attention(beside_packs, world):
    """The maps are those to the text, of the run that it changes."""
    adapted = ip_adapted(world, world.model)
    record, layers = Record("a test"), unet_of(world.model).layers
    found = world.sample(recording_model(adapted, record, layers, words_of(["dog"])), steps=1)
    assert torch.equal(found, world.sample(adapted, steps=1)) and record.current.words == ("dog",)
