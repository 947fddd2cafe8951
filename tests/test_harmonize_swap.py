"""Self-attention swap through ComfyUI's own samplers, against a naive computation, and what it leaves alone."""
from __future__ import annotations

import pytest
import torch

from personalize.nodes.attention.masks import otsu
from personalize.nodes.attention.schedule import NoiseRange
from personalize.nodes.attention.words import words_of
from personalize.nodes.families.find import unet_of
from personalize.nodes.papers.harmonize.nodes_swap import PersonalizeBranchLatent
from personalize.nodes.recording.record import Record
from personalize.nodes.recording.sampling_recorder import recording_model
from personalize.nodes.training.seeds import generator
from support.swap_world import DEFAULTS, PROMPT, ByHand, World, close, far, half_mask, own_noise


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
    ({"swap_layers": "decoder"}, {"layers": range(7, 16)}),
    ({"swap_layers": "fine decoder"}, {"layers": range(10, 16)}),
    ({"swap_layers": "encoder"}, {"layers": range(6)}),
    ({"strength": 0.5, "where": "everywhere"}, {"mask": torch.full((1, 1, 1, 1), 0.5)}),
    ({"mask": half_mask()}, {"mask": half_mask()[:, None]}),
    ({"mask": half_mask(64), "where": "everywhere"}, {"mask": half_mask()[:, None]}),
    ({"start_percent": 0.0}, {"first": 0}),
    ({"start_percent": 0.5}, {"first": 1}),
    ({"start_percent": 0.51, "steps": 3}, {"first": 2})], ids=str)
def test_settings(world, settings, by_hand):
    how = {"steps": settings.get("steps", 2)}
    settings = {key: value for key, value in settings.items() if key != "steps"}
    found = world.sample(world.swap(noise="own", **settings)[0], **how)
    assert close(found, ByHand(world, how, noise=own_noise(), **by_hand).picture)
    assert far(found, world.sample(**how))


@pytest.mark.parametrize("scheduler, count", [("normal", 25), ("normal", 100), ("ddim_uniform", 50),
                                              ("ddim_uniform", 100)])
def test_of_even_steps_the_window_is_the_papers(sd15, scheduler, count):
    """0.2 is after 20 of the paper's 100 steps: core's share of the schedule and a share of even steps agree."""
    from comfy.samplers import calculate_sigmas

    sigmas = calculate_sigmas(sd15.model.get_model_object("model_sampling"), scheduler, count)
    assert NoiseRange.of(sd15.model, (0.2, 1.0)).steps(sigmas) == set(range(count // 5, count))


@pytest.mark.smoke
def test_a_large_mask_is_kept_at_the_size_of_the_latent(world):
    """Or the record of a few runs with a mask of 4k would hold gigabytes."""
    model, record = world.swap(mask=half_mask(2048))
    world.sample(model, steps=3)
    for used in record.current.masks.values():
        assert torch.equal(used.float(), half_mask()) and used.untyped_storage().nbytes() == 2 * 16 * 16


@pytest.mark.parametrize("settings, steps", [
    ({"mask_method": "Otsu"}, (0, 1, 2)), ({"mask_steps": "newest step"}, (2,)),
    ({"mask_layers": "all layers"}, (0, 1, 2))], ids=str)
def test_masks_from_attention(world, settings, steps):
    """Against maps recorded without a swap; they are compared with naive loops in test_attention_capture."""
    layers = [layer for layer in unet_of(world.model).layers if layer.stride == 1 or "mask_layers" in settings]
    recorded = Record("a test", every_step=True)
    world.sample(recording_model(world.model, recorded, layers, words_of(["dog"])))
    mean = torch.stack([recorded.current.mean_map("dog", step) for step in steps]).mean(0)
    scaled = (mean - mean.min()) / (mean.max() - mean.min())
    expected = otsu(mean) if "mask_method" in settings else scaled > 0.3
    model, record = world.swap(start_percent=0.75, **settings)
    world.sample(model)
    assert sorted(record.current.masks) == [3] and record.current.layers == tuple(layers)
    used = record.current.masks[3].bool()
    assert int((used != expected).sum()) <= 1, "the other record keeps float16"
    assert 0.02 < float(used.float().mean()) < 0.98


# ------------------------------------------------------------------------------------------------ what stays
OFF = ({"strength": 0.0}, {"start_percent": 0.6, "end_percent": 0.9})


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

    plain, swapped = denoised(world.model), denoised(world.swap(start_percent=0.6)[0])
    for step, (ours, theirs) in enumerate(zip(swapped, plain, strict=True)):
        assert ours[0].shape == theirs[0].shape == (2, 4, 16, 16) and ours[2] == theirs[2] == 3
        assert torch.equal(ours[0], theirs[0]) == (step < 2)


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
    with pytest.raises(ValueError, match="start_percent .0.5. is not before end_percent .0.5."):
        world.swap(start_percent=0.5, end_percent=0.5)
    with pytest.raises(ValueError, match="positive carries hooks"):
        world.swap(positive=[[world.visual[0][0], {"hooks": object()}]])
    with pytest.raises(ValueError, match="already carries a second branch"):
        world.swap(world.swap()[0])
    with pytest.raises(ValueError, match="mask holds 3 pictures but 2 are sampled"):
        world.sample(world.swap(mask=torch.ones(3, 8, 8))[0], batch=2)
    with pytest.raises(ValueError, match="found no 'cat' in the positive conditioning"):
        world.sample(world.swap(words="cat")[0])
    foreign = [[world.positive[0][0], {}]]
    with pytest.raises(ValueError, match="does not say where words are"):
        world.sample(world.swap(words="")[0], foreign)
    with pytest.raises(ValueError, match="^words is empty and the prompt 'a dog' holds no placeholder"):
        world.swap(words="", clip=world.clip, prompt="a dog")
    found = world.sample(world.swap(clip=world.clip, prompt=PROMPT)[0], foreign, steps=2)
    assert torch.equal(found, world.sample(world.swap()[0], steps=2))
    with pytest.raises(ValueError, match="is empty: either no sampler uses its MODEL"):
        PersonalizeBranchLatent.execute(world.swap()[1], {"samples": torch.zeros(1, 4, 16, 16)})
    record = Record("Record Attention")
    result = world.sample(recording_model(world.model, record, unet_of(world.model).layers, words_of(["dog"])), steps=1)
    with pytest.raises(ValueError, match="The record of Record Attention holds no second branch"):
        PersonalizeBranchLatent.execute(record, {"samples": result})


def test_in_a_graph(execute, tiny_checkpoints):
    """KSampler with the swap; the branch's latent, the masks and the maps wait for it."""
    prompt = {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": tiny_checkpoints["sdxl"]}},
              "2": {"class_type": "PersonalizeEncodeWithSpans", "inputs": {
                  "clip": ["1", 1], "prompt": PROMPT, "words": "dog"}},
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
                  "record": ["5", 1], "latent": ["7", 0], "show": "each step", "opacity": 1.0}},
              "11": {"class_type": "PersonalizeShowAttention", "inputs": {
                  "record": ["5", 1], "latent": ["7", 0], "show": "mean", "scale": "each map", "colours": "grey",
                  "opacity": 1.0, "longest_side": 0}},
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
