"""Recording attention beside other patches, recorders and runs: nothing mixes, and nothing stays."""
from __future__ import annotations

import gc
import weakref

import pytest
import torch

from personalize.nodes.attention.words import words_of
from personalize.nodes.families.find import unet_of
from support.inprocess import load_computing_in
from support.layouts import of_spans
from support.recorded import PROMPT, by_hand, close, plain_run, recording
from support.sampling import encoded, guided, sample


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
    for layer in unet_of(model).layers[::2]:
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
            assert record.sampling(alone).layers == unet_of(model).layers


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
    positive = encoded(clip, "a dog", **of_spans({"dog": (2,)}).options())
    negative = encoded(clip, "", **of_spans({"dog": (1,)}).options())
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
    assert record.sampling().map("dog", unet_of(model).layers[0], 0) is not None


# ------------------------------------------------------------------------------------------------ state and memory
def test_runs_are_kept_apart(sd15):
    model, clip, _ = sd15
    words = words_of(["dog"], clip, PROMPT)
    recorded, record = recording(model, words, unet_of(model).layers[:2])
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
    recorded, record = recording(model, words_of(["dog"], clip, PROMPT), unet_of(model).layers[:1])
    positive, negative = encoded(clip, PROMPT), encoded(clip, "")
    first = sample(recorded, positive, negative)

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(recorded, positive, negative, cfg=2.0, callback=stop)
    assert record.sampling(first) is record.sampling() and record.sampling().map_steps == (0, 1)


def test_two_recorders_on_one_model_do_not_mix(sd15):
    model, clip, _ = sd15
    inner, dogs = recording(model, words_of(["dog"], clip, PROMPT), unet_of(model).layers[:2])
    outer, hats = recording(inner, words_of(["red hat"], clip, PROMPT), unet_of(model).layers[2:3])
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
    pixels = sum((16 // layer.stride) ** 2 for layer in unet_of(model).layers)
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
    recorded, record = recording(changed, words_of(["dog"], clip, PROMPT), unet_of(model).layers[:1])
    _, seen = plain_run(changed, positive, negative, steps=1)
    sample(recorded, positive, negative, steps=1)
    _, unchanged = plain_run(model, positive, negative, steps=1)
    layer = unet_of(model).layers[0]
    found = record.current.map("dog", layer, 0)
    assert close(found, by_hand(seen, layer)[1:, :, 5]) and not close(found, by_hand(unchanged, layer)[1:, :, 5])
    assert unet_of(model).block(layer).attn2.to_k.weight is not None


def test_maps_are_those_of_the_model_that_runs(sd15):
    """With scheduled LoRAs and dynamic VRAM ComfyUI's guiders keep the options of the MODEL but run a copy of it."""
    import comfy.samplers

    model, clip, _ = sd15
    copied, layer = load_computing_in(torch.float32, "sd15.safetensors"), unet_of(model).layers[0]
    weight = unet_of(copied).block(layer).attn2.to_k.weight
    with torch.inference_mode():
        weight += torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    positive, negative = encoded(clip, PROMPT), encoded(clip, "")
    recorded, record = recording(model, words_of(["dog"], clip, PROMPT), unet_of(model).layers[:1])
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
