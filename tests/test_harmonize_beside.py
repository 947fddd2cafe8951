"""Self-attention swap beside other nodes, patches and guiders."""
from __future__ import annotations

from collections import deque

import pytest
import torch
from safetensors.torch import save_file

from personalize.nodes.attention.branch import in_branch
from personalize.nodes.attention.words import words_of
from personalize.nodes.families.find import unet_of
from personalize.nodes.recording.record import Record
from personalize.nodes.recording.sampling_recorder import recording_model
from personalize.nodes.training.seeds import generator
from personalize.nodes.visual_prompts.ip_adapter_files import read_ip_adapter
from personalize.nodes.visual_prompts.nodes_ip_adapter import PersonalizeApplyIPAdapter
from personalize.nodes.visual_prompts.tokens import VisualTokens
from support.companions import with_control, with_lora
from support.inprocess import load_computing_in
from support.sampling import guided
from support.swap_by_hand import kept_keys_and_values, swapping
from support.swap_world import ByHand, World, close, far, half_mask, own_noise
from tiny.ip_adapter import flat, state_dict


# ------------------------------------------------------------------------------------------------ beside others
def self_attention_patches(model):
    """The model with another pack's patches of the self-attention, which scale queries, values and output."""
    patched = model.clone()
    patched.set_model_attn1_patch(lambda n, context, value, options: (n * 1.1, context, value * 0.9))
    patched.set_model_attn1_output_patch(lambda n, options: n * 1.2)
    return patched


@pytest.mark.parametrize("companion", ["LoRA", "ControlNet", "patch before", "patch after"])
def test_composes(any_world, companion):
    """The naive computation runs on the same model beside the same companion."""
    world, how, positive = any_world, {"steps": 2}, any_world.positive
    model = world.model
    if companion == "LoRA":
        model = world.strong(with_lora(world.weak))
    elif companion == "ControlNet":
        positive = with_control(model, positive)
    else:
        model = self_attention_patches(model)
    swapped = world.swap(world.model if companion == "patch after" else model, noise="own")[0]
    if companion == "patch after":
        swapped = self_attention_patches(swapped)
    found = world.sample(swapped, positive, **how)
    expected = ByHand(world, how, model, positive, noise=own_noise()).picture
    assert close(found, expected) and far(found, world.sample(model, positive, **how))


@pytest.mark.parametrize("order", ["before", "after"])
def test_ip_adapter(any_world, order, tmp_path):
    """The picture attends to its tokens, orthogonal ones perhaps, the branch to the original ones."""
    channels = [layer.channels for part in ("input", "output", "middle") for layer in unet_of(any_world.model).layers
                if layer.block[0] == part]
    width = any_world.positive[0][0].shape[-1]
    save_file(flat(state_dict("base", 8, width, channels)), tmp_path / "a.safetensors")
    adapter = read_ip_adapter(tmp_path / "a.safetensors")
    tokens, original = (VisualTokens(torch.randn(1, 4, width, generator=generator(seed)), "IP-Adapter")
                        for seed in (1, 2))

    def adapted(model, *tokens):
        return PersonalizeApplyIPAdapter.execute(model, adapter, tokens[0], 1.0, 0.0, 1.0, *tokens[1:]).args[0]

    model = any_world.model
    if order == "before":
        swapped, record = any_world.swap(adapted(model, tokens, original))
    else:
        swapped, record = any_world.swap()
        swapped = adapted(swapped, tokens, original)
    how = {"steps": 2}
    found = any_world.sample(swapped, **how)
    expected = ByHand(any_world, how, adapted(model, tokens), branch_model=adapted(model, original))
    assert close(found, expected.picture) and far(found, any_world.sample(adapted(model, tokens), **how))
    assert close(record.branch_latent, expected.branch)


@pytest.mark.parametrize("order", ["before", "after"])
def test_patches_that_repeat_rows(world, order):
    """As attention couple does: the conditional rows twice inside the text attention, merged again after it."""
    def coupled(model):
        patched = model.clone()
        patched.set_model_attn2_patch(
            lambda n, context, value, options: tuple(torch.cat([part, part[-1:]]) for part in (n, context, value)))
        patched.set_model_attn2_output_patch(lambda n, options: torch.cat([n[:-2], (n[-2:-1] + n[-1:]) / 2]))
        return patched

    model, record = world.swap(coupled(world.model)) if order == "before" else world.swap()
    found = world.sample(model if order == "before" else coupled(model), steps=3)
    assert close(found, world.sample(world.swap()[0], steps=3))
    assert sorted(record.sampling(found).masks) == [1, 2]


@pytest.mark.parametrize("node, inputs", [("TomePatchModel", {"ratio": 0.5}),
                                          ("HyperTile", {"tile_size": 64, "swap_size": 1, "max_depth": 0,
                                                         "scale_depth": False}),
                                          ("FreeU_V2", {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}),
                                          ("PerturbedAttentionGuidance", {"scale": 3.0}),
                                          ("SelfAttentionGuidance", {"scale": 0.5, "blur_sigma": 2.0}),
                                          ("RescaleCFG", {"multiplier": 0.7})])
def test_beside_nodes_of_comfyui(world, execute, node, inputs):
    """Also those that merge, tile or replace self-attention; before and after the swap makes no difference."""
    import nodes

    def patched(model):
        function = nodes.NODE_CLASS_MAPPINGS[node]
        result = (function.execute(model, **inputs) if hasattr(function, "execute")
                  else getattr(function(), function.FUNCTION)(model, **inputs))
        return getattr(result, "args", result)[0]

    def sample(model):
        torch.manual_seed(0)  # HyperTile and ToMe draw from ComfyUI's global generator
        return world.sample(model, steps=2)

    plain = sample(patched(world.model))
    before, after = (sample(model) for model in (world.swap(patched(world.model), noise="own")[0],
                                                 patched(world.swap(noise="own")[0])))
    assert before.isfinite().all() and close(before, after) and far(before, plain)


@pytest.mark.parametrize("settings", [{}, {"halves": "conditional"}, {"guidance": "unguided", "halves": "conditional"}],
                         ids=str)
def test_dual_guidance_runs_the_negative_first(world, settings):
    """With the same positive prompt twice it is plain guidance, which is compared with the naive computation."""
    from comfy_extras.nodes_custom_sampler import DualCFGGuider

    model = world.swap(noise="own", **settings)[0]
    found = guided(DualCFGGuider.execute(model, world.positive, world.positive, world.negative, 3.0, 5.0,
                                         "regular").args[0])
    assert close(found, world.sample(model, steps=3)) and far(found, world.sample(steps=3))


@pytest.fixture
def two_models():
    """The node DualModelGuider, which older ComfyUIs do not have."""
    from comfy_extras import nodes_custom_sampler

    if not hasattr(nodes_custom_sampler, "DualModelGuider"):
        pytest.skip("this ComfyUI has no DualModelGuider")
    return nodes_custom_sampler.DualModelGuider


@pytest.mark.newer
def test_a_guider_with_a_second_model(world, two_models):
    """DualModelGuider gives the negative side to another U-Net, in lists of its own."""
    other = load_computing_in(torch.float32, "sd15.safetensors")
    other.add_patches({f"diffusion_model.{name}": (torch.randn(weight.shape, generator=generator(5)),)
                       for name, weight in unet_of(other).denoiser.state_dict().items()
                       if name.endswith(("attn1.to_q.weight", "attn1.to_k.weight", "attn1.to_v.weight"))}, 0.1)
    other = world.strong(other)

    def run(model, positive):
        return guided(two_models.execute(model, positive, 5.0, other, world.negative).args[0])

    model, record = world.swap(mask=half_mask(), start_percent=0.0)
    found, mask = run(model, world.positive), half_mask()[:, None]
    first, second = unet_of(world.model).denoiser, unet_of(other).denoiser
    (branch, of_second), of_first = kept_keys_and_values(
        first, lambda: kept_keys_and_values(second, lambda: run(world.model, world.visual)))
    layers = range(len(unet_of(first).layers))
    with swapping(first, of_first, 0, layers, 1, mask), swapping(second, of_second, 0, layers, 1, mask):
        expected = run(world.model, world.positive)
    assert close(found, expected) and far(found, run(world.model, world.positive))
    assert close(record.branch_latent, branch)


@pytest.mark.newer
def test_a_second_model_of_another_kind_is_refused(world, sdxl, two_models):
    with pytest.raises(ValueError, match="built otherwise than that of the MODEL that was patched"):
        guided(two_models.execute(world.swap(where="everywhere")[0], world.positive, 5.0, sdxl.model,
                                  World(sdxl).negative).args[0])


@pytest.mark.parametrize("order, node", [("before", "EasyCacheNode"), ("after", "EasyCacheNode"),
                                         ("after", "LazyCacheNode")])
def test_nodes_that_skip_steps(world, order, node):
    """Each picture skips its own steps; where only the second one does, its newest keys and values are taken."""
    from comfy_extras import nodes_easycache

    def cached(model, threshold=3.0):
        return getattr(nodes_easycache, node).execute(model, threshold, 0.15, 0.95, False).args[0]

    def both(threshold=3.0):
        settings = {"where": "everywhere"}
        if order == "before":
            return world.swap(cached(world.model, threshold), **settings)[0]
        return cached(world.swap(**settings)[0], threshold)

    how, calls = {"steps": 5}, []
    hook = unet_of(world.model).denoiser.time_embed.register_forward_hook(lambda *_: calls.append(1))
    found = world.sample(both(), **how)
    hook.remove()
    assert 2 < len(calls) < 2 * 5
    assert found.isfinite().all() and far(found, world.sample(cached(world.model), **how))
    assert close(world.sample(both(0.0), **how), world.sample(world.swap(where="everywhere")[0], **how))


def test_attention_is_recorded_beside_it(world):
    """Record Attention sees the picture's rows alone, on either side of the swap."""
    seen = {}
    for order in ("none", "before", "after"):
        record, words, layers = Record("a test"), words_of(["dog"]), unet_of(world.model).layers
        if order == "none":
            model = recording_model(world.model, record, layers, words)
        elif order == "before":
            model = world.swap(recording_model(world.model, record, layers, words))[0]
        else:
            model = recording_model(world.swap()[0], record, layers, words)
        result = world.sample(model, batch=2, steps=2)
        seen[order] = record.sampling(result)
        assert torch.equal(seen[order].result, result)
    assert torch.equal(seen["before"].mean_map("dog"), seen["after"].mean_map("dog"))
    assert seen["none"].mean_map("dog").shape == seen["after"].mean_map("dog").shape == (2, 16, 16)


def test_patches_can_tell_the_branch(world):
    calls = deque()  # not a list: either picture has its own of those that patches keep things in

    def note(n, context, value, options):
        if options["block"] == ("middle", 0):
            calls.append((in_branch(options), n.shape[0], tuple(options["cond_or_uncond"])))
        return n, context, value

    model = world.swap(guidance="unguided", start_percent=0.0)[0]
    model.set_model_attn2_patch(note)
    world.sample(model, batch=2, steps=1)
    assert list(calls) == [(True, 2, (0,)), (False, 4, (1, 0))]


def test_areas(world):
    """An area as large as the picture changes nothing; in a smaller one the mask is that part of the whole mask."""
    model, how = world.swap(start_percent=0.0, noise="own", mask=half_mask())[0], {"steps": 2}
    whole = [[tensor, {**options, "area": (16, 16, 0, 0), "strength": 1.0}] for tensor, options in world.positive]
    assert close(world.sample(model, whole, **how), world.sample(model, **how))
    right, left = ([[tensor, {**options, "area": (16, 8, 0, x), "strength": 1.0}] for tensor, options in world.positive]
                   for x in (8, 0))
    for areas, negative in ((right, right), (left, left), ([*left, *right], world.negative)):
        unswapped = world.sample(world.model, areas, negative=negative, **how)
        found = world.sample(model, areas, negative=negative, **how)
        assert found.isfinite().all()
        assert torch.equal(found, unswapped) if areas is right else far(found, unswapped)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(world, dtype):
    half, seen = world.strong(load_computing_in(dtype, "sd15.safetensors")), set()
    half.set_model_attn1_output_patch(lambda n, options: (seen.add(n.dtype), n)[1])
    how = {"steps": 2, "batch": 2}
    found = world.sample(world.swap(half, mask=half_mask(), noise="own")[0], **how)
    expected = world.sample(world.swap(mask=half_mask(), noise="own")[0], **how)
    rounding = float((world.sample(half, **how) - world.sample(**how)).abs().mean())
    assert seen == {dtype} and far(found, world.sample(half, **how))
    assert float((found - expected).abs().mean()) < 2 * rounding
    model, record = world.swap(half)
    assert world.sample(model, **how).isfinite().all() and sorted(record.current.masks) == [1]


def test_a_branch_with_a_control_net_of_its_own(world):
    visual = with_control(world.model, world.visual)
    model, record = world.swap(positive=visual)
    world.sample(model, steps=2)
    assert close(record.branch_latent, world.sample(positive=visual, steps=2))
    assert far(record.branch_latent, world.sample(positive=world.visual, steps=2))
