"""Sampling with references: against both streams written out, beside other patches, and off."""
from __future__ import annotations

import copy

import comfy.samplers
import pytest
import torch
from test_training_loop import subject
from torch import Tensor

from personalize.nodes.attention.layers import attention_layers, unet_of
from personalize.nodes.attention.masks import on_grid
from personalize.nodes.attention.record import Record
from personalize.nodes.harmonize.nodes_orthogonal import PersonalizeOrthogonalize
from personalize.nodes.harmonize.nodes_swap import PersonalizeSelfAttentionSwap
from personalize.nodes.text.concept import Concept
from personalize.nodes.text.encoders import text_encoders
from personalize.nodes.text.nodes_prompts import PersonalizeEncodeWithSpans
from personalize.nodes.text.spans import END, SPANS, TOKENS
from personalize.nodes.text.apply import apply_concepts
from personalize.nodes.vico.apply import Reference, Use, with_references
from personalize.nodes.vico.blocks import ImageBlocks, chosen_layers
from personalize.nodes.vico.prompts import layout_of_prompt
from personalize.nodes.visual_prompts.tokens import VisualTokens
from support import vico_by_hand
from support.companions import KINDS, composed
from support.inprocess import dynamic_vram
from support.sampling import encoded, noise_for, sample
from support.vico_by_hand import DualStream

DOG, TOY = "<my-dog>", "<my-toy>"
PROMPT = f"a photo of a {DOG} beside one {TOY}"
STEPS, CFG = 2, 5.0


def concept(word: str, clip, seed: int) -> Concept:
    draw = torch.Generator().manual_seed(seed)
    return Concept(word, "dog", "dog").with_vectors(
        {encoder.key: 0.1 * torch.randn(1, encoder.width, generator=draw) for encoder in text_encoders(clip)})


class Scene:
    """A checkpoint with random image blocks, a prompt with two learned words, and references."""

    def __init__(self, checkpoint, text: str = PROMPT, negative: str = "blurry"):
        self.model, self.clip, _ = checkpoint
        self.concepts = (concept(DOG, self.clip, 1), concept(TOY, self.clip, 2))
        self.blocks = ImageBlocks(self.model, chosen_layers(attention_layers(self.model), "decoder"))
        self.blocks.draw(torch.Generator().manual_seed(3))
        self.tensors = {name: p.detach() for name, p in self.blocks.named_tensors()}
        self.positive = self.encode(text)
        self.negative = encoded(self.clip, negative)

    @torch.inference_mode()
    def encode(self, text: str):
        return PersonalizeEncodeWithSpans.execute(self.clip, text, "", self.concepts).args[0]

    def patched(self, references, use=Use("paper"), model=None, record=None, **more):
        blocks = copy.deepcopy(self.blocks)  # ComfyUI wants to see a loaded model go with its last patcher
        return with_references(model or self.model, blocks, (), references, use, record or Record("Apply ViCo"), **more)

    def sample(self, references, use=Use("paper"), **how) -> Tensor:
        return sample(self.patched(references, use), self.positive, self.negative, steps=STEPS, cfg=CFG, **how)

    def plain(self, **how) -> Tensor:
        return sample(self.model, self.positive, self.negative, steps=STEPS, cfg=CFG, **how)

    @torch.inference_mode()
    def by_hand(self, references, use: Use, masker, batch: int = 1) -> Tensor:
        """Euler with guidance, every call of the denoiser by DualStream."""
        sampling, base = self.model.get_model_object("model_sampling"), self.model.model
        latents = torch.cat([reference.latents for reference in references])
        spans = self.positive[0][1][SPANS]
        where = [spans[reference.word] for reference in references for _ in reference.latents]
        sides = [self.positive, self.negative]
        contexts = [side[0][0].expand(batch, -1, -1) for side in sides]
        ys = [None, None]
        if unet_of(self.model).num_classes is not None:
            ys = [base.encode_adm(pooled_output=side[0][1]["pooled_output"], width=128, height=128,
                                  device="cpu").expand(batch, -1) for side in sides]
        sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", STEPS)
        x = sampling.noise_scaling(sigmas[0], noise_for(torch.zeros(batch, 4, 16, 16)), torch.zeros(batch, 4, 16, 16),
                                   True)
        for sigma, after in zip(sigmas[:-1], sigmas[1:]):
            rows = sigma.expand(batch)
            denoised = []
            for side in (0, 1):
                seen_by = 0 if use.halves == "shared" else side
                reads = side == 0 or use.halves != "conditional"
                stream = DualStream(unet_of(self.model), self.tensors, masker, use.variant == "released",
                                    use.strength if reads else 0.0)
                output = stream(sampling.calculate_input(rows, x), latents.expand(batch, *latents.shape),
                                sampling.timestep(rows).float(), contexts[side], ys[side], [where] * batch,
                                contexts[seen_by], ys[seen_by])
                denoised.append(sampling.calculate_denoised(rows, output, x))
            guided = denoised[1] + CFG * (denoised[0] - denoised[1])
            x = x + (x - guided) / sigma * (after - sigma)
        return base.process_latent_out(x)


@pytest.fixture
def scene(sd15):
    return Scene(sd15)


@pytest.fixture(params=["sd15", "sdxl"])
def any_scene(request):
    return Scene(request.getfixturevalue(request.param))


def latents(pictures: int = 1, seed: int = 7, side: int = 16) -> Tensor:
    return torch.randn(pictures, 4, side, side, generator=torch.Generator().manual_seed(seed))


def dog(**more) -> Reference:
    return Reference(latents(), DOG, **more)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-4 * float(expected.abs().max()), rtol=1e-3)


# ------------------------------------------------------------------------------------------------ against plain loops
@pytest.mark.parametrize("use, references", [
    (Use("paper"), 1), (Use("released", halves="shared"), 1), (Use("none", halves="conditional", strength=0.6), 2)],
    ids=["both", "shared", "conditional"])
def test_sampling_equals_both_streams_by_hand(any_scene, use, references):
    """Also with two pictures of one object, whose tokens follow each other."""
    masker = {"paper": vico_by_hand.otsu_mask, "released": vico_by_hand.released_mask, "none": None}[use.variant]
    given = [Reference(latents(references), DOG)]
    found = any_scene.sample(given, use, batch=2)
    close(found, any_scene.by_hand(given, use, masker, batch=2))
    assert float((found - any_scene.plain(batch=2)).abs().max()) > 0.05


def test_two_objects_have_a_mask_each(scene):
    """Appendix J: two references, tokens concatenated, each masked by its own word."""
    given = [dog(), Reference(latents(seed=8), TOY)]
    close(scene.sample(given), scene.by_hand(given, Use("paper"), vico_by_hand.otsu_mask))


def test_given_mask_takes_the_place_of_the_automatic_one(scene):
    shape = torch.zeros(1, 128, 128)
    shape[:, 10:70, 30:128] = 1

    def masker(maps: Tensor) -> Tensor:
        side = round(maps.shape[-1] ** 0.5)
        return on_grid(shape, (side, side)).flatten(1).expand(len(maps), -1)

    close(scene.sample([dog(masks=shape)]), scene.by_hand([dog()], Use("paper"), masker))
    assert not torch.equal(scene.sample([dog(masks=shape)], Use("released")), scene.sample([dog()], Use("released")))


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


# ------------------------------------------------------------------------------------------------ speed
def unet_rows(model) -> list[int]:
    """Rows of every call of the U-Net that the MODEL makes while it samples, the references' included."""
    rows: list[int] = []
    hook = unet_of(model).time_embed.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    rows.append(hook)
    return rows


@pytest.mark.parametrize("use, expected", [
    (Use("paper"), [2, 6] * 3), (Use("paper", halves="shared"), [1, 6] * 3),
    (Use("paper", halves="shared", reuse=2), [1, 6, 6, 1, 6]),
    (Use("paper", halves="conditional", reuse=9), [1, 6, 6, 6])])
def test_references_run_once_for_a_whole_batch(scene, use, expected):
    rows = unet_rows(scene.model)
    hook = rows.pop()
    try:
        small = Reference(latents(side=8), DOG)
        sample(scene.patched([small], use), scene.positive, scene.negative, batch=3, steps=3, cfg=CFG, size=(8, 8))
    finally:
        hook.remove()
    assert rows == expected


def test_many_references_need_no_more_memory_than_the_picture(scene):
    """Five references with two prompts run two rows at a time, as many as the picture has, and see the same."""
    rows = unet_rows(scene.model)
    hook = rows.pop()
    five = Reference(latents(5), DOG)
    try:
        found = scene.sample([five])
    finally:
        hook.remove()
    assert rows == [2, 2, 2, 2, 2, 2] * STEPS
    close(found, scene.by_hand([five], Use("paper"), vico_by_hand.otsu_mask))


def test_reference_stops_after_the_last_image_block(scene):
    ran = []
    unet = unet_of(scene.model)
    hooks = [unet.output_blocks[i][0].register_forward_hook(lambda m, a, o, i=i: ran.append((i, len(o))))
             for i in (9, 10, 11)]
    try:
        scene.sample([dog()], batch=3)
    finally:
        for hook in hooks:
            hook.remove()
    assert [i for i, rows in ran if rows == 2] == [9, 10] * STEPS
    assert [i for i, rows in ran if rows == 6] == [9, 10, 11] * STEPS


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
        longer = PersonalizeOrthogonalize.execute(scene.positive, subject=DOG, strength=1.0, basis="words",
                                                  last_tokens=0, visual_tokens=visual).args[0]
    assert longer[0][0].shape[1] == scene.positive[0][0].shape[1] + 16
    found, without = (sample(model, longer, scene.negative, steps=STEPS, cfg=CFG)
                      for model in (scene.patched([dog()]), scene.model))
    assert torch.isfinite(found).all() and not torch.equal(found, without)
    assert not torch.equal(found, scene.sample([dog()]))


def test_reference_of_another_size(scene):
    found = scene.sample([Reference(latents(side=8), DOG)], size=(16, 24))
    assert found.shape[-2:] == (16, 24) and torch.isfinite(found).all()


# ------------------------------------------------------------------------------------------------ the word
def test_prompt_without_the_word_takes_its_end_and_says_so(scene, caplog):
    positive = scene.encode("a photo of a cat")
    found = sample(scene.patched([dog()]), positive, scene.negative, steps=STEPS, cfg=CFG)
    assert f"the prompt does not hold {DOG}, so the object mask is taken from its end-of-text token" in caplog.text
    options = {**positive[0][1], SPANS: {DOG: (positive[0][1][TOKENS].index(END),)}}
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
    model = scene.patched([nameless], prompt=layout_of_prompt(clip, text, []))
    assert torch.equal(sample(model, stock, scene.negative, steps=STEPS, cfg=CFG), expected)
    with pytest.raises(ValueError, match="A positive conditioning does not say where the subject's word is"):
        sample(scene.patched([nameless]), stock, scene.negative, steps=STEPS, cfg=CFG)


def test_two_objects_have_the_words_of_the_training(scene):
    """The first that ViCo was trained with is the first object's, wherever it stands in the prompt."""
    named = [dog(), Reference(latents(seed=8), TOY)]
    nameless = [Reference(each.latents) for each in named]
    model = with_references(scene.model, copy.deepcopy(scene.blocks), (DOG, TOY), nameless, Use("paper"), Record("A"))
    positive = scene.encode(f"one {TOY} and then a {DOG}")
    assert torch.equal(sample(model, positive, scene.negative, steps=STEPS, cfg=CFG),
                       sample(scene.patched(named), positive, scene.negative, steps=STEPS, cfg=CFG))


def test_two_learned_words_must_be_told_apart(scene):
    with pytest.raises(ValueError, match=f"The prompt holds {DOG} and {TOY}; write into word which of them"):
        scene.sample([Reference(latents())])


def test_applied_twice_is_refused(scene):
    with pytest.raises(ValueError, match="This MODEL already reads a reference; use one Apply ViCo"):
        scene.patched([dog()], model=scene.patched([dog()]))


def test_model_for_inpainting_is_refused(scene, monkeypatch):
    monkeypatch.setattr(unet_of(scene.model), "in_channels", 9)
    with pytest.raises(ValueError, match="takes 9 input channels, 4 of them latents: it is made for inpainting"):
        scene.patched([dog()])


# ------------------------------------------------------------------------------------------------ the record
def test_record_holds_maps_and_masks_of_the_references(scene):
    record = Record("Apply ViCo")
    model = scene.patched([Reference(latents(2), DOG), Reference(latents(seed=9), TOY)], record=record)
    result = sample(model, scene.positive, scene.negative, steps=STEPS, cfg=CFG, batch=2)
    run = record.sampling(result)
    assert run.images == 3 and sorted(run.masks) == [0, 1] and run.words == (DOG, TOY)
    assert [layer.order for layer in run.layers] == [8, 10, 12, 14]
    for mask in run.masks.values():
        assert mask.shape == (3, 16, 16) and 0 < mask.float().mean() < 1
    assert run.map(DOG, run.layers[-1]).shape == (3, 16, 16)
    with torch.inference_mode():
        unmasked = Record("Apply ViCo")
        sample(scene.patched([dog()], Use("none"), record=unmasked), scene.positive, scene.negative, steps=STEPS)
    assert not unmasked.current.masks


@pytest.mark.parametrize("first", [True, False], ids=["patched first", "references first"])
def test_patches_of_others_see_the_picture_alone(any_scene, first):
    """Every call of an attention patch, such as a recorder's, with its rows and pixels: as many as without references."""
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
    assert calls == seen() and len(calls) >= STEPS * len(attention_layers(any_scene.model))


# ------------------------------------------------------------------------------------------------ beside the swap
@pytest.mark.parametrize("swap_first", [True, False])
def test_beside_self_attention_swap_the_visual_branch_stays_without_reference(scene, swap_first):
    settings = {"subject": DOG, "start": 0.0, "end": 1.0, "strength": 1.0, "layers": "all", "where": "everywhere",
                "threshold": 0.3, "mask_layers": "coarse layers", "mask_steps": "all steps so far", "halves": "both",
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
