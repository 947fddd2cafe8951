"""Maps recorded while ComfyUI's own samplers run, against naive loops over what an unpatched run projected."""
from __future__ import annotations

import gc
import weakref

import pytest
import torch

from personalize.nodes.attention.layers import attention_layers, transformer_block, unet_of
from personalize.nodes.attention.maps import resized
from personalize.nodes.attention.record import Record
from personalize.nodes.attention.recording import recording_model
from personalize.nodes.attention.words import Words, words_of
from personalize.nodes.text.spans import span_options
from support.attention_by_hand import naive_attention, projections
from support.inprocess import load_half
from support.sampling import encoded, guided, noise_for, sample

PROMPT = "a photo of a dog in a red hat"
DOG, HAT = (5,), (8, 9)
LONG = ", ".join(["a very long prompt"] * 22) + ", a dog"  # two chunks


def recording(model, words=Words(), layers=None, window=(0.0, 1.0), every_step=True):
    """(MODEL, Record)."""
    record = Record("the test", every_step)
    return recording_model(model, record, layers or attention_layers(model), words, window), record


def plain_run(model, *args, **kwargs):
    """(result, seen): the unpatched model's result, and what each layer projected in each call of the U-Net."""
    with projections(unet_of(model)) as seen:
        result = sample(model, *args, **kwargs)
    return result, seen


def by_hand(seen, layer, call=0):
    """(rows, pixels, T), mean over heads."""
    heads, kept = seen[layer.order]
    return naive_attention(kept[2 * call].float(), kept[2 * call + 1].float(), heads).mean(1)


def close(found, expected):
    """float16 keeps three digits."""
    return torch.allclose(found.flatten(1), expected, rtol=2e-3, atol=1e-6)


# ------------------------------------------------------------------------------------------------ values
def test_maps_equal_naive_loops(any_checkpoint):
    model, clip, _ = any_checkpoint
    positive, negative = encoded(clip, PROMPT), encoded(clip, "")
    plain, seen = plain_run(model, positive, negative, batch=2)
    recorded, record = recording(model, words_of(["dog", "red hat"], clip, PROMPT))
    assert torch.equal(sample(recorded, positive, negative, batch=2), plain)
    run = record.sampling(plain)
    assert (run.words, run.map_steps, run.absent) == (("dog", "red hat"), (0, 1), ())
    assert (run.layers, run.images, run.size, run.steps) == (attention_layers(model), 2, (16, 16), 2)
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
        places = [5, 82] if long_side == "negative" else list(words.positions["dog"])
        assert long_side == "negative" or min(places) > 77
        assert close(record.current.map("dog", layer, 0), attention[..., places].sum(-1))


def test_positive_rows_alone(sd15):
    """The negative prompt holds the word too, at another place; cfg 1 runs the positive alone."""
    model, clip, _ = sd15
    positive, negative = encoded(clip, "a dog", **span_options({"dog": (2,)}, 77)), encoded(
        clip, "dog dog dog", **span_options({"dog": (1, 2, 3)}, 77))
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
    spans = span_options({"dog": (2,)}, 77)
    left = encoded(clip, "a dog", **spans, area=(16, 16, 0, 0), strength=1.0)
    right = encoded(clip, "a dog on grass", **spans, area=("percentage", 1.0, 2 / 3, 0.0, 1 / 3), strength=3.0)
    layers = tuple(layer for layer in attention_layers(model) if layer.stride == 1)
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
    one = encoded(clip, "a dog", **span_options({"dog": (2,)}, 77), mask=mask, mask_strength=1.0)
    other = encoded(clip, "a red dog", **span_options({"dog": (3,)}, 77), mask=1 - mask, mask_strength=1.0)
    layers = attention_layers(model)[:1]
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
    one, other = (encoded(clip, text, **span_options({"dog": (where,)}, 77), mask=torch.ones(1, 128, 128),
                          mask_strength=strength)
                  for text, where, strength in (("a dog", 2, 0.5), ("a red dog", 3, 2.0)))
    layers = attention_layers(model)[:1]
    recorded, record = recording(model, layers=layers)
    plain, seen = plain_run(model, one + other, encoded(clip, ""), steps=1)
    assert torch.equal(sample(recorded, one + other, encoded(clip, ""), steps=1), plain)
    attention = by_hand(seen, layers[0]).unflatten(1, (16, 16))
    expected = (0.5 * attention[2][..., 2] + 2 * attention[1][..., 3]) / 2.5
    assert close(record.current.map("dog", layers[0], 0), expected.flatten()[None])


def test_words_of_prompts_that_act_in_different_steps(sd15):
    """ConditioningSetTimestepRange: a word is recorded in the steps in which its prompt acts."""
    model, clip, _ = sd15
    early = encoded(clip, "a dog", **span_options({"dog": (2,)}, 77), start_percent=0.0, end_percent=0.5)
    late = encoded(clip, "a cat", **span_options({"cat": (2,)}, 77), start_percent=0.5, end_percent=1.0)
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
    first, second = (encoded(clip, f"a {word}", **span_options({word: (2,)}, 77)) for word in ("dog", "cat"))
    recorded, record = recording(model)
    results = []
    for used in (model, recorded):
        guider = Guider_DualCFG(used)
        guider.set_conds(first, second, encoded(clip, "dog cat"))
        guider.set_cfg(5.0, 2.0)
        with projections(unet_of(model)) as seen:
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
    area = encoded(clip, "a dog", **span_options({"dog": (2,)}, 77), area=(16, 16, 0, 0), strength=1.0)
    maps = []
    for kind, others, cfg in ((Guider_DualCFG, ("a fish", "blurry"), (5.0, 2.0)),
                              (comfy.samplers.CFGGuider, ("blurry",), (5.0,))):
        recorded, record = recording(model, layers=attention_layers(model)[:1])
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
    recorded, record = recording(model, words_of(["dog"], clip, PROMPT), attention_layers(model)[:1])
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
        recorded, record = recording(model, words_of(["dog"], clip, PROMPT), attention_layers(model)[:1])
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


# ------------------------------------------------------------------------------------------------ beside other patches
class Foreign:
    """Another pack's patches: replaced attention as IPAdapter packs write it, and list patches that change things."""

    @staticmethod
    def replace(q, k, v, options):
        from comfy.ldm.modules.attention import optimized_attention

        return optimized_attention(q, k, v, options["n_heads"]) + 0.1 * optimized_attention(
            q, k.flip(1), v.flip(1), options["n_heads"])

    @staticmethod
    def change_context(n, context, value, options):
        return n, context * 1.5, value

    @staticmethod
    def change_output(n, options):
        return n * 0.9


def with_replace(model):
    model = model.clone()
    for layer in attention_layers(model)[::2]:
        model.set_model_attn2_replace(Foreign.replace, *layer.block, layer.depth)
    return model


def with_list_patches(model):
    model = model.clone()
    model.set_model_attn2_patch(Foreign.change_context)
    model.set_model_attn2_output_patch(Foreign.change_output)
    return model


def with_lora(model):
    model = model.clone()
    key = next(key for key in model.model.state_dict() if key.endswith("attn2.to_k.weight"))
    weight = model.model.state_dict()[key]
    model.add_patches({key: (torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)),)}, 0.5)
    return model


def with_core_node(name, module, **inputs):
    def apply(model):
        import importlib

        node = getattr(importlib.import_module(f"comfy_extras.{module}"), name)
        output = node.execute(model, **inputs) if hasattr(node, "GET_SCHEMA") else node().patch(model, **inputs)
        return output[0]
    return apply


OTHERS = {
    "attention replaced": with_replace, "list patches": with_list_patches, "LoRA": with_lora,
    "FreeU": with_core_node("FreeU_V2", "nodes_freelunch", b1=1.3, b2=1.4, s1=0.9, s2=0.2),
    "PAG": with_core_node("PerturbedAttentionGuidance", "nodes_pag", scale=3.0),
    "SAG": with_core_node("SelfAttentionGuidance", "nodes_sag", scale=0.5, blur_sigma=2.0),
    "HyperTile": with_core_node("HyperTile", "nodes_hypertile", tile_size=32, swap_size=2, max_depth=2,
                                scale_depth=False)}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_pictures_are_bit_identical_beside_other_patches(request, kind, other):
    """The other patch before and after the recording one."""
    model, clip, _ = request.getfixturevalue(kind)
    positive, negative = encoded(clip, PROMPT), encoded(clip, "")
    words = words_of(["dog"], clip, PROMPT)

    def sampled(model):
        torch.manual_seed(0)  # HyperTile draws its tiles
        return sample(model, positive, negative, steps=2 if kind == "sd15" else 1)

    with torch.inference_mode():
        alone = sampled(OTHERS[other](model))
        assert not torch.equal(alone, sampled(model))
        after, record_after = recording(OTHERS[other](model), words)
        before, record_before = recording(model, words)
        for recorded, record in ((after, record_after), (OTHERS[other](before), record_before)):
            assert torch.equal(sampled(recorded), alone)
            assert record.sampling(alone).layers == attention_layers(model)


def test_maps_are_those_of_the_context_that_patches_before_left(sd15):
    model, clip, _ = sd15
    changed = with_list_patches(model)
    positive, negative = encoded(clip, PROMPT), encoded(clip, "")
    plain, seen = plain_run(changed, positive, negative, steps=1)
    recorded, record = recording(changed, words_of(["dog"], clip, PROMPT))
    assert torch.equal(sample(recorded, positive, negative, steps=1), plain)
    for layer in record.current.layers[::4]:
        assert close(record.current.map("dog", layer, 0), by_hand(seen, layer)[1:, :, 5])


def test_the_unconditional_pass_of_self_attention_guidance_is_not_recorded(sd15):
    """SAG runs the negative conditioning alone, where it stands at the place of the positive one."""
    model, clip, _ = sd15
    positive = encoded(clip, "a dog", **span_options({"dog": (2,)}, 77))
    negative = encoded(clip, "", **span_options({"dog": (1,)}, 77))
    guided = OTHERS["SAG"](model)
    plain, seen = plain_run(guided, positive, negative, steps=1)
    recorded, record = recording(guided)
    assert torch.equal(sample(recorded, positive, negative, steps=1), plain)
    layer = record.current.layers[0]
    assert len(seen[0][1]) == 4, "SAG has not run the model a second time"
    assert close(record.current.map("dog", layer, 0), by_hand(seen, layer)[1:, :, 2])


def test_a_patch_that_rearranges_rows_leaves_nothing_to_record(sd15):
    """Attention couple repeats rows; maps after it cannot be told apart, before it they can."""
    model, clip, _ = sd15

    def repeat_rows(n, context, value, options):
        return tuple(torch.cat([part, part[-1:]]) for part in (n, context, value))

    def drop_rows(n, options):
        return n[:-1]

    def coupled(model):
        model = model.clone()
        model.set_model_attn2_patch(repeat_rows)
        model.set_model_attn2_output_patch(drop_rows)
        return model

    positive, negative = encoded(clip, PROMPT), encoded(clip, "")
    words = words_of(["dog"], clip, PROMPT)
    after, record = recording(coupled(model), words)
    expected = sample(coupled(model), positive, negative)
    assert torch.equal(sample(after, positive, negative), expected)
    with pytest.raises(ValueError, match="rearranges the batch; put the test before that node"):
        record.sampling().require_maps("the test")
    before, record = recording(model, words)
    assert torch.equal(sample(coupled(before), positive, negative), expected)
    assert record.sampling().map("dog", attention_layers(model)[0], 0) is not None


# ------------------------------------------------------------------------------------------------ state and memory
def test_runs_are_kept_apart(sd15):
    model, clip, _ = sd15
    words = words_of(["dog"], clip, PROMPT)
    recorded, record = recording(model, words, attention_layers(model)[:2])
    with pytest.raises(ValueError, match="record of the test is empty.*change the sampler's seed"):
        record.sampling()
    positive, negative = encoded(clip, PROMPT), encoded(clip, "")
    first = sample(recorded, positive, negative, batch=2)
    map_of_first = record.sampling(first).mean_map("dog").clone()
    second = sample(recorded, positive, negative, size=(24, 16), steps=1)
    assert record.sampling(second).size == (24, 16) and record.sampling().size == (24, 16)
    assert torch.equal(record.sampling(first).mean_map("dog"), map_of_first)
    assert record.sampling(first[:1]).size == (16, 16)
    for _ in range(4):
        sample(recorded, positive, negative, steps=1)
    with pytest.raises(ValueError, match="not what a sampler on the MODEL of the test gave in its last runs"):
        record.sampling(first)  # runs are not kept without end
    with pytest.raises(ValueError, match="Connect that sampler's LATENT itself"):
        record.sampling(sample(model, positive, negative, cfg=2.0))


def test_interrupted_runs_do_not_count(sd15):
    model, clip, _ = sd15
    recorded, record = recording(model, words_of(["dog"], clip, PROMPT), attention_layers(model)[:1])
    positive, negative = encoded(clip, PROMPT), encoded(clip, "")
    first = sample(recorded, positive, negative)

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(recorded, positive, negative, cfg=2.0, callback=stop)
    assert record.sampling(first) is record.sampling() and record.sampling().map_steps == (0, 1)


def test_two_recorders_on_one_model_do_not_mix(sd15):
    model, clip, _ = sd15
    inner, dogs = recording(model, words_of(["dog"], clip, PROMPT), attention_layers(model)[:2])
    outer, hats = recording(inner, words_of(["red hat"], clip, PROMPT), attention_layers(model)[2:3])
    positive, negative = encoded(clip, PROMPT), encoded(clip, "")
    result = sample(outer, positive, negative)
    assert torch.equal(result, sample(model, positive, negative))
    assert (dogs.sampling().words, len(dogs.sampling().layers)) == (("dog",), 2)
    assert (hats.sampling().words, len(hats.sampling().layers)) == (("red hat",), 1)
    with pytest.raises(ValueError):
        recording(model)[1].sampling()


def test_record_is_small_and_on_the_cpu(sd15):
    model, clip, _ = sd15
    positive, negative = encoded(clip, PROMPT), encoded(clip, "")
    sizes = {}
    for every_step in (False, True):
        recorded, record = recording(model, words_of(["dog", "red hat"], clip, PROMPT), every_step=every_step)
        sample(recorded, positive, negative, steps=3, batch=2)
        kept = record.current._sums.values()
        parts = [part for steps in kept for parts in steps.values() for part in parts]
        assert all(part.device.type == "cpu" and not part.requires_grad for part in parts)
        assert all(part.untyped_storage().nbytes() == part.nbytes for part in parts), "a larger tensor is kept alive"
        sizes[every_step] = sum(part.nbytes for part in parts)
    pixels = sum((16 // layer.stride) ** 2 for layer in attention_layers(model))
    assert sizes[False] == pixels * 2 * (2 + 1) * 4  # two words, two pictures and a weight, float32
    assert sizes[True] == sizes[False] * 3 / 2


def test_nothing_is_left_on_the_model(sd15):
    model, clip, _ = sd15
    before = {key: repr(value) for key, value in model.model_options.items()}
    recorded, record = recording(model, words_of(["dog"], clip, PROMPT))
    positive, negative = encoded(clip, PROMPT), encoded(clip, "")
    options = {key: repr(value) for key, value in positive[0][1].items()}
    sample(recorded, positive, negative)
    assert {key: repr(value) for key, value in model.model_options.items()} == before
    assert not model.wrappers and {key: repr(value) for key, value in positive[0][1].items()} == options
    assert not [key for key in recorded.model_options["transformer_options"] if str(key).startswith("personalize")]
    gone = weakref.ref(recorded)
    del recorded
    gc.collect()
    assert gone() is None, "the record keeps the model alive"
    assert record.sampling().words == ("dog",)


def test_projections_of_the_patch_use_the_patched_weights(sd15):
    """With a LoRA on to_k the maps are those of the changed keys."""
    model, clip, _ = sd15
    changed = with_lora(model)
    positive, negative = encoded(clip, PROMPT), encoded(clip, "")
    recorded, record = recording(changed, words_of(["dog"], clip, PROMPT), attention_layers(model)[:1])
    _, seen = plain_run(changed, positive, negative, steps=1)
    sample(recorded, positive, negative, steps=1)
    _, unchanged = plain_run(model, positive, negative, steps=1)
    layer = attention_layers(model)[0]
    found = record.current.map("dog", layer, 0)
    assert close(found, by_hand(seen, layer)[1:, :, 5]) and not close(found, by_hand(unchanged, layer)[1:, :, 5])
    assert transformer_block(model, layer).attn2.to_k.weight is not None


def test_maps_are_those_of_the_model_that_runs(sd15):
    """With scheduled LoRAs and dynamic VRAM ComfyUI's guiders keep the options of the MODEL but run a copy of it."""
    import comfy.samplers

    model, clip, _ = sd15
    copied, layer = load_half("sd15.safetensors", torch.float32), attention_layers(model)[0]
    weight = transformer_block(copied, layer).attn2.to_k.weight
    with torch.inference_mode():
        weight += torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    positive, negative = encoded(clip, PROMPT), encoded(clip, "")
    recorded, record = recording(model, words_of(["dog"], clip, PROMPT), attention_layers(model)[:1])
    guider = comfy.samplers.CFGGuider(recorded)
    guider.set_conds(positive, negative)
    guider.set_cfg(5.0)
    guider.model_patcher = recorded.clone()
    guider.model_patcher.model = copied.model
    guided(guider, 1)
    _, seen = plain_run(copied, positive, negative, steps=1)
    _, unchanged = plain_run(model, positive, negative, steps=1)
    found = record.current.map("dog", layer, 0)
    assert close(found, by_hand(seen, layer)[1:, :, 5]) and not close(found, by_hand(unchanged, layer)[1:, :, 5])
