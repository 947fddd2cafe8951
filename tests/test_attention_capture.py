"""Maps recorded while ComfyUI's own samplers run, against naive loops over what an unpatched run projected."""
from __future__ import annotations

import pytest
import torch

from personalize.nodes.attention.maps import resized
from personalize.nodes.attention.words import words_of
from personalize.nodes.families.find import unet_of
from support.attention_by_hand import naive_attention, projections
from support.layouts import of_spans
from support.recorded import DOG, HAT, LONG, PROMPT, by_hand, close, plain_run, recording
from support.sampling import encoded, guided, noise_for, sample


# ------------------------------------------------------------------------------------------------ values
def test_maps_equal_naive_loops(any_checkpoint):
    model, clip, _ = any_checkpoint
    positive, negative = encoded(clip, PROMPT), encoded(clip, "")
    plain, seen = plain_run(model, positive, negative, batch=2)
    recorded, record = recording(model, words_of(["dog", "red hat"], clip, PROMPT))
    assert torch.equal(sample(recorded, positive, negative, batch=2), plain)
    run = record.sampling(plain)
    assert (run.words, run.map_steps, run.absent) == (("dog", "red hat"), (0, 1), ())
    assert (run.layers, run.images, run.size, run.steps) == (unet_of(model).layers, 2, (16, 16), 2)
    for layer in run.layers:
        side = 16 // layer.stride
        for step in run.map_steps:
            attention = by_hand(seen, layer, step)[2:]  # rows of the negative come first
            for word, positions in (("dog", DOG), ("red hat", HAT)):
                assert run.map(word, layer, step).shape == (2, side, side)
                assert close(run.map(word, layer, step), attention[..., positions].sum(-1))


@pytest.mark.parametrize("long_side", ["positive", "negative"])
def test_contexts_that_comfyui_repeats_are_folded(sd15, long_side):
    """77 and 154 tokens share a batch: the shorter prompt's tokens are there twice."""
    model, clip, _ = sd15
    prompts = {"positive": PROMPT, "negative": "", long_side: LONG}
    positive, negative = (encoded(clip, prompts[side]) for side in ("positive", "negative"))
    assert {positive[0][0].shape[1], negative[0][0].shape[1]} == {77, 154}
    plain, seen = plain_run(model, positive, negative)
    words = words_of(["dog"], clip, prompts["positive"])
    recorded, record = recording(model, words)
    assert torch.equal(sample(recorded, positive, negative), plain)
    for layer in record.current.layers:
        attention = by_hand(seen, layer)[1:]
        assert attention.shape[-1] == 154
        places = [5, 82] if long_side == "negative" else list(words.prompt.find("dog"))
        assert long_side == "negative" or min(places) > 77
        assert close(record.current.map("dog", layer, 0), attention[..., places].sum(-1))


@pytest.mark.smoke
def test_positive_rows_alone(sd15):
    """The negative prompt holds the word too, at another place; cfg 1 runs the positive alone."""
    model, clip, _ = sd15
    positive, negative = encoded(clip, "a dog", **of_spans({"dog": (2,)}).options()), encoded(
        clip, "dog dog dog", **of_spans({"dog": (1, 2, 3)}).options())
    for cfg, rows in ((5.0, slice(1, 2)), (1.0, slice(0, 1))):
        plain, seen = plain_run(model, positive, negative, cfg=cfg)
        recorded, record = recording(model)
        assert torch.equal(sample(recorded, positive, negative, cfg=cfg), plain)
        for layer in record.current.layers[::5]:
            assert close(record.current.map("dog", layer, 1), by_hand(seen, layer, 1)[rows][..., 2])


def test_mean_over_steps_and_layers(sd15):
    model, clip, _ = sd15
    positive, negative = encoded(clip, PROMPT), encoded(clip, "")
    words = words_of(["dog"], clip, PROMPT)
    runs = []
    for every_step in (True, False):
        recorded, record = recording(model, words, every_step=every_step)
        sample(recorded, positive, negative, steps=3)
        runs.append(record.current)
    each, mean = runs
    assert each.map_steps == (0, 1, 2) and mean.map_steps == ()
    for layer in each.layers:
        steps = torch.stack([each.map("dog", layer, step) for step in range(3)])
        assert torch.allclose(mean.map("dog", layer), steps.mean(0), rtol=2e-3, atol=1e-6)
        assert torch.allclose(each.map("dog", layer), steps.mean(0), rtol=2e-3, atol=1e-6)
    expected = torch.stack([resized(mean.map("dog", layer), (16, 16)) for layer in mean.layers]).mean(0)
    assert torch.allclose(mean.mean_map("dog"), expected, atol=1e-7)


def test_odd_sizes(sd15):
    """The maps of a latent that strides do not divide are as large as the layers are."""
    model, clip, _ = sd15
    positive, negative = encoded(clip, PROMPT), encoded(clip, "")
    recorded, record = recording(model, words_of(["dog"], clip, PROMPT))
    plain, seen = plain_run(model, positive, negative, size=(18, 22))
    assert torch.equal(sample(recorded, positive, negative, size=(18, 22)), plain)
    for layer in record.current.layers:
        assert close(record.current.map("dog", layer, 0), by_hand(seen, layer)[1:, :, 5])


# ------------------------------------------------------------------------------------------------ several conditionings
def test_areas_are_put_in_their_place(sd15):
    """Two areas that overlap: where both hold the word its map is the mean, weighted by their strengths."""
    model, clip, _ = sd15
    spans = of_spans({"dog": (2,)}).options()
    left = encoded(clip, "a dog", **spans, area=(16, 16, 0, 0), strength=1.0)
    right = encoded(clip, "a dog on grass", **spans, area=("percentage", 1.0, 2 / 3, 0.0, 1 / 3), strength=3.0)
    layers = tuple(layer for layer in unet_of(model).layers if layer.stride == 1)
    recorded, record = recording(model, layers=layers)
    positive, negative = left + right, encoded(clip, "")
    plain, seen = plain_run(model, positive, negative, size=(16, 24), steps=1)
    assert torch.equal(sample(recorded, positive, negative, size=(16, 24), steps=1), plain)
    # The U-Net runs on 16 × 16: areas of equal size share a batch, the last added first, the positive ones after the
    # negative's counterparts.
    for layer in layers:
        attention = by_hand(seen, layer)[..., 2].unflatten(1, (16, 16))
        assert attention.shape[0] == 4
        expected = torch.zeros(16, 24)
        expected[:, :8], expected[:, 16:] = attention[3][:, :8], attention[2][:, 8:]
        expected[:, 8:16] = (attention[3][:, 8:] + 3 * attention[2][:, :8]) / 4
        assert close(record.current.map("dog", layer, 0), expected.flatten()[None])


def test_masks_of_conditionings_weigh_their_maps(sd15):
    model, clip, _ = sd15
    mask = torch.zeros(1, 128, 128)
    mask[..., :64] = 1.0
    one = encoded(clip, "a dog", **of_spans({"dog": (2,)}).options(), mask=mask, mask_strength=1.0)
    other = encoded(clip, "a red dog", **of_spans({"dog": (3,)}).options(), mask=1 - mask, mask_strength=1.0)
    layers = unet_of(model).layers[:1]
    recorded, record = recording(model, layers=layers)
    plain, seen = plain_run(model, one + other, encoded(clip, ""), steps=1)
    assert torch.equal(sample(recorded, one + other, encoded(clip, ""), steps=1), plain)
    attention = by_hand(seen, layers[0]).unflatten(1, (16, 16))
    of_one, of_other = attention[2][..., 2], attention[1][..., 3]
    found = record.current.map("dog", layers[0], 0)
    assert close(found[..., :7].flatten(1), of_one[:, :7].flatten()[None])
    assert close(found[..., 9:].flatten(1), of_other[:, 9:].flatten()[None])


def test_strengths_of_masks_weigh_where_they_overlap(sd15):
    """ConditioningSetMask's strength: ComfyUI multiplies the mask by it."""
    model, clip, _ = sd15
    one, other = (encoded(clip, text, **of_spans({"dog": (where,)}).options(), mask=torch.ones(1, 128, 128),
                          mask_strength=strength)
                  for text, where, strength in (("a dog", 2, 0.5), ("a red dog", 3, 2.0)))
    layers = unet_of(model).layers[:1]
    recorded, record = recording(model, layers=layers)
    plain, seen = plain_run(model, one + other, encoded(clip, ""), steps=1)
    assert torch.equal(sample(recorded, one + other, encoded(clip, ""), steps=1), plain)
    attention = by_hand(seen, layers[0]).unflatten(1, (16, 16))
    expected = (0.5 * attention[2][..., 2] + 2 * attention[1][..., 3]) / 2.5
    assert close(record.current.map("dog", layers[0], 0), expected.flatten()[None])


def test_words_of_prompts_that_act_in_different_steps(sd15):
    """ConditioningSetTimestepRange: a word is recorded in the steps in which its prompt acts."""
    model, clip, _ = sd15
    early = encoded(clip, "a dog", **of_spans({"dog": (2,)}).options(), start_percent=0.0, end_percent=0.5)
    late = encoded(clip, "a cat", **of_spans({"cat": (2,)}).options(), start_percent=0.5, end_percent=1.0)
    recorded, record = recording(model)
    sample(recorded, early + late, encoded(clip, ""), steps=4)
    run = record.current
    steps = {word: [s for s in run.map_steps if run.map(word, run.layers[0], s) is not None] for word in run.words}
    assert steps["dog"] and steps["cat"] and max(steps["dog"]) <= min(steps["cat"])
    assert sorted({*steps["dog"], *steps["cat"]}) == [0, 1, 2, 3]


def test_guider_whose_positive_side_is_not_the_first(sd15):
    """DualCFGGuider hands negative, middle and positive to the model in this order."""
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    model, clip, _ = sd15
    first, second = (encoded(clip, f"a {word}", **of_spans({word: (2,)}).options()) for word in ("dog", "cat"))
    recorded, record = recording(model)
    results = []
    for used in (model, recorded):
        guider = Guider_DualCFG(used)
        guider.set_conds(first, second, encoded(clip, "dog cat"))
        guider.set_cfg(5.0, 2.0)
        with projections(unet_of(model).denoiser) as seen:
            results.append(guided(guider, 1))
    assert torch.equal(*results)
    run = record.current
    assert set(run.words) == {"dog", "cat"}
    heads, kept = seen[0]  # three projections of one row by the patch come in between
    query, key = next((kept[i], kept[i + 1]) for i in range(0, len(kept), 2) if kept[i].shape[0] == 3)
    attention = naive_attention(query.float(), key.float(), heads).mean(1)[..., 2]
    rows = {word: [bool(close(run.map(word, run.layers[0], 0), row[None])) for row in attention] for word in run.words}
    assert sorted(rows.values()) == [[False, True, False], [True, False, False]] and rows["dog"] != rows["cat"]


def test_copies_of_areas_under_such_a_guider_are_left_out(sd15):
    """ComfyUI adds an area to the other lists, with their text and its id. The first step's maps are those of plain
    guidance, where a copy is on the negative side alone."""
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    model, clip, _ = sd15
    area = encoded(clip, "a dog", **of_spans({"dog": (2,)}).options(), area=(16, 16, 0, 0), strength=1.0)
    maps = []
    for kind, others, cfg in ((Guider_DualCFG, ("a fish", "blurry"), (5.0, 2.0)),
                              (comfy.samplers.CFGGuider, ("blurry",), (5.0,))):
        recorded, record = recording(model, layers=unet_of(model).layers[:1])
        guider = kind(recorded)
        guider.set_conds(area, *(encoded(clip, text) for text in others))
        guider.set_cfg(*cfg)
        guided(guider, 1)
        maps.append(record.current.map("dog", record.current.layers[0], 0))
    assert torch.allclose(*maps, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------------------ samplers
@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2s_ancestral", "dpmpp_2m_sde", "uni_pc", "dpm_2", "lcm"])
def test_every_sampler_fills_every_step(sd15, sampler):
    model, clip, _ = sd15
    positive, negative = encoded(clip, PROMPT), encoded(clip, "")
    recorded, record = recording(model, words_of(["dog"], clip, PROMPT), unet_of(model).layers[:1])
    plain = sample(model, positive, negative, sampler=sampler, steps=4)
    assert torch.equal(sample(recorded, positive, negative, sampler=sampler, steps=4), plain)
    run = record.sampling(plain)
    assert run.steps == 4 and set(run.map_steps) >= {0, 1, 2} and max(run.map_steps) <= 3
    assert all(torch.isfinite(run.map("dog", run.layers[0], step)).all() for step in run.map_steps)


def test_image_to_image_and_inpainting(sd15):
    model, clip, _ = sd15
    positive, negative = encoded(clip, PROMPT), encoded(clip, "")
    latent = noise_for(torch.zeros(1, 4, 16, 16), 9)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1.0
    for more in ({"denoise": 0.5}, {"denoise": 0.8, "noise_mask": mask}):
        recorded, record = recording(model, words_of(["dog"], clip, PROMPT), unet_of(model).layers[:1])
        plain, seen = plain_run(model, positive, negative, latent=latent, **more)
        assert torch.equal(sample(recorded, positive, negative, latent=latent, **more), plain)
        run = record.sampling(plain)
        assert run.map_steps == (0, 1)
        assert close(run.map("dog", run.layers[0], 1), by_hand(seen, run.layers[0], 1)[1:, :, 5])


def test_window(sd15):
    """The first half of the schedule: sigmas down to that of half of the timesteps."""
    model, clip, _ = sd15
    recorded, record = recording(model, words_of(["dog"], clip, PROMPT), window=(0.0, 0.5))
    positive, negative = encoded(clip, PROMPT), encoded(clip, "")
    result = sample(recorded, positive, negative, steps=6)
    assert torch.equal(result, sample(model, positive, negative, steps=6))
    assert record.sampling(result).map_steps == (0, 1, 2)  # timesteps 999, 832, 666 | 499, 333, 166
