"""Sampling with references in a graph: off, beside other patches, with other samplers and prompts, and its word."""
from __future__ import annotations

import copy

import pytest
import torch
from comfy.model_management import InterruptProcessingException, interrupt_current_processing
from torch import Tensor

from personalize.nodes.families.find import unet_of
from personalize.nodes.papers.harmonize.nodes_orthogonal import PersonalizeOrthogonalize
from personalize.nodes.papers.harmonize.nodes_swap import PersonalizeSelfAttentionSwap
from personalize.nodes.papers.vico.apply import with_references
from personalize.nodes.papers.vico.references import Reference, Use
from personalize.nodes.recording.record import Record
from personalize.nodes.text.apply import apply_concepts
from personalize.nodes.text.layout import END, layout_in
from personalize.nodes.text.tokens import prompt_tokens
from personalize.nodes.visual_prompts.tokens import VisualTokens
from support.companions import KINDS, composed
from support.inprocess import dynamic_vram
from support.layouts import with_spans
from support.sampling import encoded, guided, sample
from support.vico_scene import CFG, DOG, STEPS, TOY, Scene, close, dog, latents


# ------------------------------------------------------------------------------------------------ off
def test_outside_its_steps_and_on_the_given_model_nothing_changes(scene):
    plain = scene.plain()
    model = scene.patched([dog()], Use("paper", window=(0.3, 0.5)))
    assert torch.equal(sample(model, scene.positive, scene.negative, steps=STEPS, cfg=CFG), plain)
    first, second = scene.sample([dog()]), scene.sample([dog()])
    assert torch.equal(first, second) and not torch.equal(first, plain)
    assert torch.equal(scene.plain(), plain)


def test_clone_of_a_loaded_model_and_two_runs_of_one_model_work(scene):
    model = scene.patched([dog()])
    first = sample(model, scene.positive, scene.negative, steps=STEPS, cfg=CFG)
    other = scene.encode(f"{DOG} at night")
    changed = sample(model.clone(), other, scene.negative, steps=STEPS, cfg=CFG)
    assert torch.equal(changed, sample(scene.patched([dog()]), other, scene.negative, steps=STEPS, cfg=CFG))
    assert torch.equal(sample(model.clone(), scene.positive, scene.negative, steps=STEPS, cfg=CFG), first)


@pytest.mark.parametrize("rows", [2, 6], ids=["on the references", "on the picture"])
def test_interrupted_run_leaves_nothing_behind(scene, rows):
    """In the second step, in the middle of either run of the U-Net, which have as many rows as given."""
    unet, record, expected = unet_of(scene.model).denoiser, Record("Apply ViCo"), scene.sample([dog()], batch=3)
    model, runs = scene.patched([dog()], record=record), []

    def interrupt(module, inputs, output):
        runs.append(len(output))
        if runs.count(rows) == 2:
            interrupt_current_processing()

    hook = unet.output_blocks[6][0].register_forward_hook(interrupt)
    try:
        with pytest.raises(InterruptProcessingException):
            scene.plain(model, batch=3)
    finally:
        hook.remove()
        interrupt_current_processing(False)
    assert runs == [2, 6, 2, 6][:3 if rows == 2 else 4] and not hooks_of(unet)
    found = scene.plain(model, batch=3)
    assert torch.equal(found, expected)
    assert record.sampling() is record.sampling(found) and sorted(record.sampling().masks) == [0, 1]
    assert torch.equal(scene.sample([dog()], batch=3), expected)


def hooks_of(module) -> list:
    return [hook for each in module.modules() for hook in (*each._forward_hooks.values(),
                                                           *each._forward_pre_hooks.values())]


# ------------------------------------------------------------------------------------------------ in a graph
@pytest.mark.parametrize("kind", KINDS)
def test_composes_with_other_patches(any_scene, kind):
    def patch(model):
        return any_scene.patched([dog()], use, model)

    results = {}
    for use in (Use("paper"), Use("paper", window=(0.3, 0.5)), None):
        model, positive = composed(kind, any_scene.model, any_scene.positive, patch if use else lambda model: model)
        results[use] = sample(model, positive, any_scene.negative, steps=STEPS, cfg=CFG)
    on, off, without = results.values()
    assert torch.equal(off, without) and not torch.equal(on, without) and torch.isfinite(on).all()
    if kind == "plain":
        assert torch.equal(on, any_scene.sample([dog()]))
    else:
        assert not torch.equal(on, any_scene.sample([dog()]))


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m_sde", "euler_ancestral"])
def test_other_samplers(scene, sampler):
    found = scene.sample([dog()], sampler=sampler, batch=2)
    assert torch.isfinite(found).all() and not torch.equal(found, scene.plain(sampler=sampler, batch=2))


@pytest.mark.parametrize("halves", ["both", "shared", "conditional"])
def test_short_of_memory_the_halves_run_one_by_one_and_nothing_changes(scene, halves, monkeypatch):
    use = Use("paper", halves=halves)
    together = scene.sample([dog()], use)
    monkeypatch.setattr(scene.model.model, "memory_required", lambda *args, **kwargs: 1e30)
    close(scene.sample([dog()], use), together)


def test_dynamic_vram_changes_no_picture(scene):
    expected = scene.sample([dog()])
    with dynamic_vram():
        found = Scene((scene.model, scene.clip, None)).sample([dog()])
    assert torch.equal(found, expected)


def test_long_prompts_areas_and_a_batch_of_prompts(scene):
    long = scene.encode(" ".join(["many words"] * 40) + f" and a {DOG}")
    assert long[0][0].shape[1] == 154
    results = [sample(scene.patched([dog()]), long, scene.negative, steps=STEPS)]
    area = [[scene.positive[0][0], {**scene.positive[0][1], "area": (8, 16, 0, 0)}], *long]
    results.append(sample(scene.patched([dog()]), area, scene.negative, steps=STEPS))
    pair = [[torch.cat([scene.positive[0][0], scene.encode(f"my own one {TOY} {DOG}")[0][0]]), scene.positive[0][1]]]
    results.append(sample(scene.patched([dog()]), pair, scene.negative, steps=STEPS, batch=2))
    assert all(torch.isfinite(found).all() for found in results)
    alone = sample(scene.patched([dog()]), scene.positive, scene.negative, steps=STEPS)
    same_prompt_twice = [[scene.positive[0][0].repeat(2, 1, 1), scene.positive[0][1]]]
    twice = sample(scene.patched([dog()]), same_prompt_twice, scene.negative, steps=STEPS,
                   latent=torch.zeros(2, 4, 16, 16))
    close(sample(scene.patched([dog()]), scene.positive, scene.negative, steps=STEPS, batch=2), twice)
    assert alone.shape[0] == 1


@pytest.mark.parametrize("halves", ["both", "shared", "conditional"])
@pytest.mark.parametrize("with_area", ["positive", "negative"])
def test_counterparts_of_areas_see_the_references_with_their_own_side_s_prompt(scene, with_area, halves):
    """ComfyUI adds each area to the other side as well, with that side's text under the same id: an area of the whole
    picture changes nothing."""
    use, sides = Use("paper", halves=halves), {"positive": scene.positive, "negative": scene.negative}
    whole = {**sides, with_area: [[tensor, {**options, "area": (16, 16, 0, 0), "strength": 1.0}]
                                  for tensor, options in sides[with_area]]}
    found, expected = (sample(scene.patched([dog()], use), *each.values(), steps=STEPS, cfg=CFG)
                       for each in (whole, sides))
    close(found, expected)


def test_copies_of_areas_under_a_guider_whose_positive_side_is_not_the_first(scene):
    """DualCFGGuider hands negative, second and first to the model in this order, and gives the negative side copies."""
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    def drawn(area: dict) -> Tensor:
        first = [[tensor, {**options, **area}] for tensor, options in scene.positive]
        guider = Guider_DualCFG(scene.patched([dog()], Use("paper", halves="conditional")))
        guider.set_conds(first, scene.encode(f"one {TOY} and a {DOG}"), scene.negative)
        guider.set_cfg(CFG, 2.0)
        return guided(guider, STEPS)

    close(drawn({"area": (16, 16, 0, 0), "strength": 1.0}), drawn({}))


def test_inpainting_and_visual_tokens_behind_the_prompt(scene):
    """Tokens of a picture behind those of the words, as IP-Adapter's and BLIP-Diffusion's with Orthogonalize."""
    mask = torch.zeros(1, 1, 128, 128)
    mask[..., 64:] = 1
    painted = scene.sample([dog()], latent=torch.ones(1, 4, 16, 16), noise_mask=mask)
    plain = scene.plain(latent=torch.ones(1, 4, 16, 16), noise_mask=mask)
    close(painted[..., :8], plain[..., :8])
    assert not torch.equal(painted[..., 8:], plain[..., 8:])
    visual = VisualTokens(torch.randn(1, 16, scene.positive[0][0].shape[-1]), "an encoder")
    with torch.inference_mode():
        longer = PersonalizeOrthogonalize.execute(scene.positive, words=DOG, strength=1.0, basis="words",
                                                  last_tokens=0, visual_tokens=visual).args[0]
    assert longer[0][0].shape[1] == scene.positive[0][0].shape[1] + 16
    found, without = (sample(model, longer, scene.negative, steps=STEPS, cfg=CFG)
                      for model in (scene.patched([dog()]), scene.model))
    assert torch.isfinite(found).all() and not torch.equal(found, without)
    assert not torch.equal(found, scene.sample([dog()]))


def test_reference_of_another_size(scene):
    found = scene.sample([Reference(latents(side=8), DOG)], size=(16, 24))
    assert found.shape[-2:] == (16, 24) and torch.isfinite(found).all()


@pytest.mark.parametrize("first", [True, False], ids=["patched first", "references first"])
def test_patches_of_others_see_the_picture_alone(any_scene, first):
    """Every call of an attention patch, as a recorder's, with its rows and pixels: as many as without references."""
    def seen(change=lambda model: model):
        calls = []

        def watched(model):
            model = model.clone()
            model.set_model_attn2_patch(lambda n, context, value, options: (
                calls.append((options["block"], n.shape)), (n, context, value))[1])
            return model

        model = change(watched(any_scene.model)) if first else watched(change(any_scene.model))
        sample(model, any_scene.positive, any_scene.negative, steps=STEPS, cfg=CFG, batch=2)
        return calls

    calls = seen(lambda model: any_scene.patched([dog()], model=model))
    assert calls == seen() and len(calls) >= STEPS * len(unet_of(any_scene.model).layers)


# ------------------------------------------------------------------------------------------------ beside the swap
@pytest.mark.parametrize("swap_first", [True, False])
def test_beside_self_attention_swap_the_visual_branch_stays_without_reference(scene, swap_first):
    settings = {"words": DOG, "start_percent": 0.0, "end_percent": 1.0, "strength": 1.0, "swap_layers": "all",
                "where": "everywhere", "mask_method": "threshold", "threshold": 0.3,
                "mask_layers": "coarse layers", "mask_steps": "all steps so far", "halves": "both",
                "noise": "shared", "guidance": "guided"}

    def swapped(model):
        with torch.inference_mode():
            return PersonalizeSelfAttentionSwap.execute(model, scene.negative, negative=scene.negative, **settings).args

    def run(model):
        return sample(model, scene.positive, scene.negative, steps=STEPS, cfg=CFG)

    alone, record = swapped(scene.model)
    plain, branch = run(alone), record.branch_latent
    if swap_first:
        model, record = swapped(scene.model)
        model = scene.patched([dog()], model=model)
    else:
        model, record = swapped(scene.patched([dog()]))
    both = run(model)
    assert torch.equal(record.branch_latent, branch) and torch.isfinite(both).all()
    assert not torch.equal(both, plain) and not torch.equal(both, scene.sample([dog()]))


# ------------------------------------------------------------------------------------------------ the word
def test_prompt_without_the_word_takes_its_end_and_says_so(scene, caplog):
    positive = scene.encode("a photo of a cat")
    found = sample(scene.patched([dog()]), positive, scene.negative, steps=STEPS, cfg=CFG)
    assert f"the prompt does not hold {DOG}, so the object mask is taken from its end-of-text token" in caplog.text
    options = with_spans(positive[0][1], {DOG: layout_in(positive[0][1]).of_kind(END)[:1]})
    told = [[positive[0][0], options]]
    assert torch.equal(found, sample(scene.patched([dog()]), told, scene.negative, steps=STEPS, cfg=CFG))


def test_word_is_found_by_clip_and_prompt_or_by_itself(scene):
    text = f"a photo of a {DOG}"
    positive = scene.encode(text)
    expected = sample(scene.patched([dog()]), positive, scene.negative, steps=STEPS, cfg=CFG)
    nameless = Reference(latents())
    assert torch.equal(sample(scene.patched([nameless]), positive, scene.negative, steps=STEPS, cfg=CFG), expected)
    clip = apply_concepts(scene.clip, scene.concepts)
    stock = encoded(clip, text)
    model = scene.patched([nameless], prompt=prompt_tokens(clip, text).layout)
    assert torch.equal(sample(model, stock, scene.negative, steps=STEPS, cfg=CFG), expected)
    with pytest.raises(ValueError, match="A positive conditioning does not say where the subject's word is"):
        sample(scene.patched([nameless]), stock, scene.negative, steps=STEPS, cfg=CFG)


@pytest.mark.parametrize("trained, words", [((DOG, TOY), ("", "")), ((DOG,), ("", "")), ((), (DOG, "")),
                                            ((), ("", TOY))], ids=str)
def test_two_objects_have_a_word_each(scene, trained, words):
    """The first that ViCo was trained with is the first object's, wherever it stands in the prompt; what is left is the
    other's."""
    named = [dog(), Reference(latents(seed=8), TOY)]
    nameless = [Reference(each.latents, word) for each, word in zip(named, words)]
    model = with_references(scene.model, copy.deepcopy(scene.blocks), trained, nameless, Use("paper"), Record("A"))
    positive = scene.encode(f"one {TOY} and then a {DOG}")
    assert torch.equal(sample(model, positive, scene.negative, steps=STEPS, cfg=CFG),
                       sample(scene.patched(named), positive, scene.negative, steps=STEPS, cfg=CFG))


def test_two_learned_words_must_be_told_apart(scene):
    with pytest.raises(ValueError, match=f"The prompt holds {DOG} and {TOY}; write into words which of them"):
        scene.sample([Reference(latents())])


def test_applied_twice_is_refused(scene):
    with pytest.raises(ValueError, match="This MODEL already reads a reference; use one Apply ViCo"):
        scene.patched([dog()], model=scene.patched([dog()]))


def test_model_for_inpainting_is_refused(scene, monkeypatch):
    monkeypatch.setattr(unet_of(scene.model).denoiser, "in_channels", 9)
    with pytest.raises(ValueError, match="takes 9 input channels, 4 of them latents: it is made for inpainting"):
        scene.patched([dog()])
