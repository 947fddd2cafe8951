"""Self-attention swap through ComfyUI's own samplers, against a naive computation, and what it leaves alone."""
from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from personalize.nodes.attention.branch import in_branch
from personalize.nodes.attention.layers import attention_layers, unet_of
from personalize.nodes.attention.masks import otsu
from personalize.nodes.attention.record import Record
from personalize.nodes.attention.recording import recording_model
from personalize.nodes.attention.words import words_of
from personalize.nodes.harmonize.nodes_swap import PersonalizeBranchLatent, PersonalizeSelfAttentionSwap
from personalize.nodes.text.nodes_prompts import PersonalizeEncodeWithSpans
from personalize.nodes.training.seeds import generator
from personalize.nodes.visual_prompts.ip_adapter_files import read_ip_adapter
from personalize.nodes.visual_prompts.nodes_ip_adapter import ApplyIPAdapter
from personalize.nodes.visual_prompts.tokens import VisualTokens
from support.companions import with_control, with_lora
from support.inprocess import load_half
from support.sampling import guided
from support.swap_by_hand import MaskByHand, kept_keys_and_values, swapping
from tiny.ip_adapter import flat, state_dict

TOLERANCE = 1e-5  # of the largest value: float32 sums in another order, through all steps
PROMPT, DOG = "a photo of a dog on the beach", 5
DEFAULTS = {"subject": "dog", "start": 0.2, "end": 1.0, "strength": 1.0, "layers": "all", "where": "subject",
            "threshold": 0.3, "mask_layers": "coarse layers", "mask_steps": "all steps so far", "halves": "both",
            "noise": "shared", "guidance": "guided"}


GAIN = 100  # of the self-attentions' output. A random U-Net damps it and hardly hears its text: a swap would not show.


class World:
    """A tiny checkpoint with strong self-attention, and the prompts of these tests encoded."""

    def __init__(self, checkpoint):
        self.weak, self.clip, _ = checkpoint
        self.model = self.strong(self.weak)
        self.positive = self.encode(PROMPT, "dog")
        self.negative = self.encode("")
        self.visual = [[20 * tensor, options] for tensor, options in self.encode("fur and ears")]

    @staticmethod
    def strong(model):
        patched = model.clone()
        patched.add_patches({f"diffusion_model.{name}": ((GAIN - 1) * weight.float(),)
                             for name, weight in unet_of(model).state_dict().items()
                             if name.endswith("attn1.to_out.0.weight")})
        return patched

    def encode(self, text, words=""):
        return PersonalizeEncodeWithSpans.execute(self.clip, text, words).args[0]

    def swap(self, model=None, positive=None, **changed):
        """(MODEL, record)."""
        inputs = {"negative": self.negative, **DEFAULTS, **changed}
        return PersonalizeSelfAttentionSwap.execute(model or self.model, positive or self.visual, **inputs).args

    @torch.inference_mode()
    def sample(self, model=None, positive=None, batch=1, steps=4, cfg=5.0, sampler="euler", side=16, seed=3, latent=None,
               negative=None, noise=None, **more):
        import comfy.sample

        latent = torch.zeros(batch, 4, side, side) if latent is None else latent
        noise = comfy.sample.prepare_noise(latent, seed) if noise is None else noise
        return comfy.sample.sample(model or self.model, noise, steps, cfg, sampler, "normal", positive or self.positive,
                                   negative or self.negative, latent, disable_pbar=True, seed=seed, **more)


def close(found, expected):
    return float((found - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())


def far(found, expected):
    return float((found - expected).abs().max()) > 10 * TOLERANCE * float(expected.abs().max())


@pytest.fixture
def world(sd15):
    return World(sd15)


@pytest.fixture(params=["sd15", "sdxl"])
def any_world(request):
    return World(request.getfixturevalue(request.param))


class ByHand:
    """A naive run of the same swap: z' sampled first and alone, K' and V' of every step and layer kept, then z."""

    def __init__(self, world, how, model=None, positive=None, noise=None, first=1, layers=None, mask="attention",
                 guided=True, negative=1.0, branch_model=None):
        images, model = how.get("batch", 1), model or world.model
        unet, found = unet_of(world.model), attention_layers(world.model)
        alone = how if guided else {**how, "cfg": 1.0}
        self.branch, kept = kept_keys_and_values(
            unet, lambda: world.sample(branch_model or model, world.visual, noise=noise, **alone))
        if not guided:
            kept = [[(k.repeat(2, 1, 1), v.repeat(2, 1, 1)) for k, v in evaluation] for evaluation in kept]
        if isinstance(mask, str):
            finest = min(layer.stride for layer in found)  # 16 pixels for SD1.5, 8 for SDXL
            mask = MaskByHand([layer.order for layer in found if layer.stride == finest], [DOG], 0.3)
        layers = range(len(found)) if layers is None else layers
        with swapping(unet, kept, first, layers, images, mask, negative) as self.masks:
            self.picture = world.sample(model, positive, **how)


def own_noise(batch=1):
    return torch.randn(batch, 4, 16, 16, generator=generator(3, "branch"))


def half_mask(side=16):
    mask = torch.zeros(1, side, side)
    mask[:, :, : side // 2] = 1
    return mask


# ------------------------------------------------------------------------------------------------ Eqs. 4 and 5
@pytest.mark.parametrize("kind, sampler, where, noise", [
    ("sd15", "euler", "subject", "own"), ("sd15", "euler", "everywhere", "shared"),
    ("sd15", "dpmpp_2m", "subject", "shared"), ("sd15", "dpmpp_2m", "everywhere", "own"),
    ("sdxl", "euler", "subject", "shared"), ("sdxl", "dpmpp_2m", "everywhere", "shared"),
    ("sd21", "euler", "subject", "shared")])
def test_equals_the_naive_computation(request, kind, sampler, where, noise):
    world, batch = World(request.getfixturevalue(kind)), 2 if sampler == "euler" else 1
    how = {"sampler": sampler, "batch": batch, "steps": 3}
    plain = world.sample(**how)
    model, record = world.swap(where=where, noise=noise)
    found = world.sample(model, **how)
    expected = ByHand(world, how, noise=own_noise(batch) if noise == "own" else None,
                      mask="attention" if where == "subject" else None)
    assert close(found, expected.picture) and far(found, plain)
    assert close(record.branch_latent, expected.branch) and far(expected.branch, plain)
    seen = record.sampling(found).masks
    assert sorted(seen) == [1, 2]
    if where == "subject":
        for step, used in seen.items():
            assert torch.equal(used.float(), expected.masks[step][:, 0]) and 0.02 < float(used.float().mean()) < 0.98


@pytest.mark.parametrize("how", [{"cfg": 1.0}, {"latent": torch.ones(1, 4, 16, 16), "denoise": 0.6},
                                 {"latent": torch.ones(1, 4, 16, 16), "noise_mask": half_mask(128)[None]}],
                         ids=["cfg 1", "img2img", "inpaint"])
def test_every_way_to_sample(world, how):
    how = {"steps": 2, **how}
    found = world.sample(world.swap(noise="own")[0], **how)
    assert close(found, ByHand(world, how, noise=own_noise()).picture)
    assert far(found, world.sample(**how))


@pytest.mark.parametrize("settings, by_hand", [
    ({"guidance": "unguided", "negative": None}, {"guided": False}),
    ({"halves": "conditional"}, {"negative": 0.0}),
    ({"layers": "decoder"}, {"layers": range(7, 16)}),
    ({"layers": "fine decoder"}, {"layers": range(10, 16)}),
    ({"layers": "encoder"}, {"layers": range(6)}),
    ({"strength": 0.5, "where": "everywhere"}, {"mask": torch.full((1, 1, 1, 1), 0.5)}),
    ({"mask": half_mask()}, {"mask": half_mask()[:, None]}),
    ({"mask": half_mask(64), "where": "everywhere"}, {"mask": half_mask()[:, None]}),
    ({"start": 0.0}, {"first": 0}),
    ({"start": 0.5}, {"first": 1}),
    ({"start": 0.51, "steps": 3}, {"first": 2})], ids=str)
def test_settings(world, settings, by_hand):
    how = {"steps": settings.get("steps", 2)}
    settings = {key: value for key, value in settings.items() if key != "steps"}
    found = world.sample(world.swap(noise="own", **settings)[0], **how)
    assert close(found, ByHand(world, how, noise=own_noise(), **by_hand).picture)
    assert far(found, world.sample(**how))


def test_a_large_mask_is_kept_at_the_size_of_the_latent(world):
    """Or the record of a few runs with a mask of 4k would hold gigabytes."""
    model, record = world.swap(mask=half_mask(2048))
    world.sample(model, steps=3)
    for used in record.current.masks.values():
        assert torch.equal(used.float(), half_mask()) and used.untyped_storage().nbytes() == 2 * 16 * 16


@pytest.mark.parametrize("settings, steps", [
    ({"threshold": 0.0}, (0, 1, 2)), ({"mask_steps": "newest step"}, (2,)), ({"mask_layers": "all layers"}, (0, 1, 2))],
    ids=str)
def test_masks_from_attention(world, settings, steps):
    """Against maps recorded without a swap; they are compared with naive loops in test_attention_capture."""
    layers = [layer for layer in attention_layers(world.model) if layer.stride == 1 or "mask_layers" in settings]
    recorded = Record("a test", every_step=True)
    world.sample(recording_model(world.model, recorded, layers, words_of(["dog"])))
    mean = torch.stack([recorded.current.mean_map("dog", step) for step in steps]).mean(0)
    scaled = (mean - mean.min()) / (mean.max() - mean.min())
    expected = otsu(mean) if "threshold" in settings else scaled > 0.3
    model, record = world.swap(start=0.75, **settings)
    world.sample(model)
    assert sorted(record.current.masks) == [3] and record.current.layers == tuple(layers)
    used = record.current.masks[3].bool()
    assert int((used != expected).sum()) <= 1, "the other record keeps float16"
    assert 0.02 < float(used.float().mean()) < 0.98


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
    channels = [layer.channels for part in ("input", "output", "middle") for layer in attention_layers(any_world.model)
                if layer.block[0] == part]
    width = any_world.positive[0][0].shape[-1]
    save_file(flat(state_dict("base", 8, width, channels)), tmp_path / "a.safetensors")
    adapter = read_ip_adapter(tmp_path / "a.safetensors")
    tokens, original = (VisualTokens(torch.randn(1, 4, width, generator=generator(seed)), "IP-Adapter")
                        for seed in (1, 2))

    def adapted(model, *tokens):
        return ApplyIPAdapter.execute(model, adapter, tokens[0], 1.0, 0.0, 1.0, *tokens[1:]).args[0]

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
    other = load_half("sd15.safetensors", torch.float32)
    other.add_patches({f"diffusion_model.{name}": (torch.randn(weight.shape, generator=generator(5)),)
                       for name, weight in unet_of(other).state_dict().items()
                       if name.endswith(("attn1.to_q.weight", "attn1.to_k.weight", "attn1.to_v.weight"))}, 0.1)
    other = world.strong(other)

    def run(model, positive):
        return guided(two_models.execute(model, positive, 5.0, other, world.negative).args[0])

    model, record = world.swap(mask=half_mask(), start=0.0)
    found, mask = run(model, world.positive), half_mask()[:, None]
    first, second = unet_of(world.model), unet_of(other)
    (branch, of_second), of_first = kept_keys_and_values(
        first, lambda: kept_keys_and_values(second, lambda: run(world.model, world.visual)))
    layers = range(len(attention_layers(first)))
    with swapping(first, of_first, 0, layers, 1, mask), swapping(second, of_second, 0, layers, 1, mask):
        expected = run(world.model, world.positive)
    assert close(found, expected) and far(found, run(world.model, world.positive))
    assert close(record.branch_latent, branch)


@pytest.mark.newer
def test_a_second_model_of_another_kind_is_refused(world, sdxl, two_models):
    with pytest.raises(ValueError, match="built otherwise than that of the MODEL that was patched"):
        guided(two_models.execute(world.swap(where="everywhere")[0], world.positive, 5.0, sdxl.model,
                                  World(sdxl).negative).args[0])


@pytest.mark.parametrize("order", ["before", "after"])
def test_easy_cache(world, order):
    """Before the swap it skips whole steps. After it, it skips the branch alone: there would be nothing to swap."""
    from comfy_extras.nodes_easycache import EasyCacheNode

    def cached(model, threshold=0.2):
        return EasyCacheNode.execute(model, threshold, 0.15, 0.95, False).args[0]

    how = {"steps": 8}
    if order == "after":
        with pytest.raises(ValueError, match="EasyCache.*put that node before Self-Attention Swap"):
            world.sample(cached(world.swap(where="everywhere")[0], 3.0), **how)
        return
    model, record = world.swap(cached(world.model, 3.0), where="everywhere")
    calls = []
    hook = unet_of(world.model).time_embed.register_forward_hook(lambda *_: calls.append(1))
    found = world.sample(model, **how)
    hook.remove()
    computed = len(calls) // 2  # steps, of the branch and of the picture
    assert 1 < computed < 8 and len(calls) == 2 * computed
    first = 2  # of 8 steps, by start
    assert len(record.current.masks) == computed - first, "a mask is shown of a step that was skipped"
    assert far(found, world.sample(cached(world.model, 3.0), **how))
    never = world.swap(cached(world.model, 0.0), where="everywhere")[0]
    assert close(world.sample(never, **how), world.sample(world.swap(where="everywhere")[0], **how))


def test_attention_is_recorded_beside_it(world):
    """Record Attention sees the picture's rows alone, on either side of the swap."""
    seen = {}
    for order in ("none", "before", "after"):
        record, words, layers = Record("a test"), words_of(["dog"]), attention_layers(world.model)
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
    calls = []

    def note(n, context, value, options):
        if options["block"] == ("middle", 0):
            calls.append((in_branch(options), tuple(n.shape)[0], tuple(options["cond_or_uncond"])))
        return n, context, value

    model = world.swap(guidance="unguided", start=0.0)[0]
    model.set_model_attn2_patch(note)
    world.sample(model, batch=2, steps=1)
    assert calls == [(True, 2, (0,)), (False, 4, (1, 0))]


def test_areas(world):
    """An area as large as the picture changes nothing; in a smaller one the mask is that part of the whole mask."""
    model, how = world.swap(start=0.0, noise="own", mask=half_mask())[0], {"steps": 2}
    whole = [[tensor, {**options, "area": (16, 16, 0, 0), "strength": 1.0}] for tensor, options in world.positive]
    assert close(world.sample(model, whole, **how), world.sample(model, **how))
    right, left = ([[tensor, {**options, "area": (16, 8, 0, x), "strength": 1.0}] for tensor, options in world.positive]
                   for x in (8, 0))
    for areas, negative in ((right, right), (left, left), ([*left, *right], world.negative)):
        unswapped = world.sample(world.model, areas, negative=negative, **how)
        found = world.sample(model, areas, negative=negative, **how)
        assert found.isfinite().all()
        assert torch.equal(found, unswapped) if areas is right else far(found, unswapped)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(world, dtype):
    half, seen = world.strong(load_half("sd15.safetensors", dtype)), set()
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


# ------------------------------------------------------------------------------------------------ what stays
OFF = ({"strength": 0.0}, {"start": 1.0}, {"start": 0.5, "end": 0.5}, {"start": 0.6, "end": 0.9})


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral"])
def test_off_is_bit_identical(any_world, sampler):
    how = {"sampler": sampler, "steps": 2, "batch": 2}
    plain = any_world.sample(**how)
    for settings in OFF:
        assert torch.equal(any_world.sample(any_world.swap(**settings)[0], **how), plain), settings


def test_outside_its_window_it_is_bit_identical(world):
    """Until the first swapped step; the preview shows the picture alone."""
    def denoised(model):
        seen = []
        world.sample(model, callback=lambda step, x0, x, total: seen.append((x0.clone(), x.clone(), total)), batch=2,
                     steps=3)
        return seen

    plain, swapped = denoised(world.model), denoised(world.swap(start=0.5)[0])
    for step, (ours, theirs) in enumerate(zip(swapped, plain, strict=True)):
        assert ours[0].shape == theirs[0].shape == (2, 4, 16, 16) and ours[2] == theirs[2] == 3
        assert torch.equal(ours[0], theirs[0]) == (step < 2)


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "lms", "deis", "uni_pc", "ddim", "euler_cfg_pp",
                                     "res_multistep"])
def test_samplers_without_noise_keep_what_is_outside_the_mask(world, sampler):
    """With an empty mask the branch runs along and the picture is the plain one, bit for bit."""
    model, record = world.swap(mask=torch.zeros(1, 16, 16))
    assert torch.equal(world.sample(model, sampler=sampler, steps=2), world.sample(sampler=sampler, steps=2))
    assert close(record.branch_latent, world.sample(sampler=sampler, steps=2, positive=world.visual))


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m_sde", "lcm"])
def test_noise_of_stochastic_samplers(world, sampler):
    """The sampler draws for 2n rows: the picture's come first. It is the noise of a batch of both."""
    import comfy.sample

    model, record = world.swap(mask=torch.zeros(1, 16, 16))
    found = world.sample(model, sampler=sampler, steps=2)
    noise = comfy.sample.prepare_noise(torch.zeros(1, 4, 16, 16), 3)
    rows = [[torch.cat([world.positive[0][0], world.visual[0][0]]), {}]]
    batch = world.sample(positive=rows, negative=[[world.negative[0][0], {}]], sampler=sampler, steps=2,
                         latent=torch.zeros(2, 4, 16, 16), noise=torch.cat([noise, noise]))
    assert close(found, batch[:1]) and close(record.branch_latent, batch[1:])


def test_no_noise_stays_no_noise(world):
    """KSampler (Advanced) without added noise: the branch's own noise is none either."""
    latent, none = torch.randn(1, 4, 16, 16, generator=generator(0)), torch.zeros(1, 4, 16, 16)
    own, shared = (world.swap(noise=noise) for noise in ("own", "shared"))
    for model, _ in (own, shared):
        world.sample(model, latent=latent, noise=none, steps=2)
    assert torch.equal(own[1].branch_latent, shared[1].branch_latent)


def test_nothing_stays_from_run_to_run(world):
    """Two samplers on one MODEL, two swaps of one model, and the unpatched model between them."""
    plain = world.sample(steps=2)
    (first, record), (second, other) = (world.swap(noise="own"), world.swap(where="everywhere", guidance="unguided"))
    runs = [world.sample(model, steps=2, seed=seed) for model, seed in
            ((first, 3), (second, 3), (first, 4), (first, 3), (second, 3))]
    assert torch.equal(runs[0], runs[3]) and torch.equal(runs[1], runs[4]) and not torch.equal(runs[0], runs[1])
    assert torch.equal(world.sample(steps=2), plain)
    branches = [PersonalizeBranchLatent.execute(record, {"samples": runs[i]}).args[0]["samples"] for i in (0, 2, 3)]
    assert torch.equal(branches[0], branches[2]) and far(branches[1], branches[0])
    assert far(PersonalizeBranchLatent.execute(other, {"samples": runs[4]}).args[0]["samples"], branches[0])


def test_what_was_given_is_unchanged(world):
    before = {key: value for key, value in world.visual[0][1].items()}
    model, _ = world.swap()
    assert model is not world.model and "attn2_patch" not in world.model.model_options["transformer_options"].get(
        "patches", {})
    world.sample(model, steps=1)
    assert world.visual[0][1] == before


# ------------------------------------------------------------------------------------------------ bad input
def test_bad_input_is_one_sentence(world):
    with pytest.raises(ValueError, match="guidance is 'guided' but negative is not connected"):
        world.swap(negative=None)
    with pytest.raises(ValueError, match="positive carries hooks"):
        world.swap(positive=[[world.visual[0][0], {"hooks": object()}]])
    with pytest.raises(ValueError, match="already carries a second branch"):
        world.swap(world.swap()[0])
    with pytest.raises(ValueError, match="mask holds 3 pictures but 2 are sampled"):
        world.sample(world.swap(mask=torch.ones(3, 8, 8))[0], batch=2)
    with pytest.raises(ValueError, match="found no 'cat' in the positive conditioning"):
        world.sample(world.swap(subject="cat")[0])
    foreign = [[world.positive[0][0], {}]]
    with pytest.raises(ValueError, match="does not say where words are"):
        world.sample(world.swap(subject="")[0], foreign)
    with pytest.raises(ValueError, match="^subject is empty and the prompt 'a dog' holds no placeholder"):
        world.swap(subject="", clip=world.clip, prompt="a dog")
    found = world.sample(world.swap(clip=world.clip, prompt=PROMPT)[0], foreign, steps=2)
    assert torch.equal(found, world.sample(world.swap()[0], steps=2))
    with pytest.raises(ValueError, match="is empty: either no sampler uses its MODEL"):
        PersonalizeBranchLatent.execute(world.swap()[1], {"samples": torch.zeros(1, 4, 16, 16)})
    record = Record("Record Attention")
    result = world.sample(recording_model(world.model, record, attention_layers(world.model), words_of(["dog"])), steps=1)
    with pytest.raises(ValueError, match="The record of Record Attention holds no second branch"):
        PersonalizeBranchLatent.execute(record, {"samples": result})


def test_in_a_graph(execute, tiny_checkpoints):
    """KSampler with the swap; the branch's latent, the masks and the maps wait for it."""
    prompt = {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": tiny_checkpoints["sdxl"]}},
              "2": {"class_type": "PersonalizeEncodeWithSpans", "inputs": {
                  "clip": ["1", 1], "text": PROMPT, "words": "dog"}},
              "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "fur"}},
              "4": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
              "5": {"class_type": "PersonalizeSelfAttentionSwap", "inputs": {
                  **DEFAULTS, "model": ["1", 0], "positive": ["3", 0], "negative": ["4", 0]}},
              "6": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
              "7": {"class_type": "KSampler", "inputs": {
                  "model": ["5", 0], "positive": ["2", 0], "negative": ["4", 0], "latent_image": ["6", 0], "seed": 3,
                  "steps": 2, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}},
              "8": {"class_type": "PersonalizeBranchLatent", "inputs": {"record": ["5", 1], "latent": ["7", 0]}},
              "10": {"class_type": "PersonalizeShowMasks", "inputs": {
                  "record": ["5", 1], "latent": ["7", 0], "show": "each step", "strength": 1.0}},
              "11": {"class_type": "PersonalizeShowAttention", "inputs": {
                  "record": ["5", 1], "latent": ["7", 0], "show": "mean", "scale": "each map", "colours": "grey",
                  "strength": 1.0, "longest_side": 0}},
              "9": {"class_type": "KSampler", "inputs": {
                  "model": ["1", 0], "positive": ["3", 0], "negative": ["4", 0], "latent_image": ["6", 0], "seed": 3,
                  "steps": 2, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}}}
    get = {"picture": ["7", 0], "branch": ["8", 0], "alone": ["9", 0], "masks": ["10", 0], "maps": ["11", 2]}
    session = execute.session()
    once, again = session(prompt, get=get).values, session({**prompt, "7": {
        "class_type": "KSampler", "inputs": {**prompt["7"]["inputs"], "seed": 4}}}, get=get).values
    assert close(once["branch"]["samples"], once["alone"]["samples"])
    assert far(again["branch"]["samples"], once["branch"]["samples"])
    for shown in (once, again):
        assert shown["masks"].shape == shown["maps"].shape == (1, 128, 128), "one step of two is swapped"
        side, inside = 128 // 8, slice(8, None, 16)  # of a map's pixel, away from its neighbours
        assert torch.equal(shown["masks"][:, inside, inside].repeat_interleave(side, 1).repeat_interleave(side, 2),
                           shown["masks"])
    assert not torch.equal(once["masks"], again["masks"])
