"""Sampling with references equals both streams written out, and what runs for it."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from personalize.nodes.families.find import unet_of
from personalize.nodes.papers.vico import files
from personalize.nodes.papers.vico.apply import KEY
from personalize.nodes.papers.vico.files import ViCo, metadata_of, read_vico
from personalize.nodes.papers.vico.nodes_apply import AS_TRAINED, PersonalizeApplyViCo
from personalize.nodes.papers.vico.references import Reference, Use
from personalize.nodes.recording.record import Record
from support.companions import with_control
from support.inprocess import load_computing_in
from support.layouts import spans_in
from support.sampling import difference, sample
from support.vico_scene import CFG, DOG, MASKERS, STEPS, TOY, Scene, close, dog, latents
from tiny.models import WIDTH_L

SHAPE = torch.zeros(1, 128, 128)
SHAPE[:, 10:70, 30:128] = 1


def far(found: Tensor, other: Tensor) -> bool:
    return difference(found, other) > 0.02


def covered(maps: Tensor) -> Tensor:
    """The share of each patch of maps (m, P) that SHAPE covers, (1, P)."""
    return F.avg_pool2d(SHAPE, 128 // round(maps.shape[-1] ** 0.5)).flatten(1)


# ------------------------------------------------------------------------------------------------ against plain loops
@pytest.mark.parametrize("use, references", [
    (Use("paper"), 1), (Use("released"), 1), (Use("released", halves="shared"), 1),
    (Use("none", halves="conditional", strength=0.6), 2)], ids=["paper", "released", "shared", "conditional"])
def test_sampling_equals_both_streams_by_hand(any_scene, use, references):
    """Also with two pictures of one object, whose tokens follow each other."""
    given = [Reference(latents(references), DOG)]
    found = any_scene.sample(given, use, batch=2)
    close(found, any_scene.by_hand(given, use, batch=2))
    assert far(found, any_scene.plain(batch=2))


def test_two_objects_have_a_mask_each(scene):
    """Appendix J: two references, tokens concatenated, each masked by its own word."""
    given = [dog(), Reference(latents(seed=8), TOY)]
    close(scene.sample(given), scene.by_hand(given))


@pytest.mark.smoke
def test_given_mask_takes_the_place_of_the_automatic_one(scene):
    def masker(maps: Tensor) -> Tensor:
        return covered(maps).expand(len(maps), -1)

    close(scene.sample([dog(masks=SHAPE)]), scene.by_hand([dog()], masker=masker))
    assert not torch.equal(scene.sample([dog(masks=SHAPE)], Use("released")), scene.sample([dog()], Use("released")))


@pytest.mark.parametrize("variant", MASKERS)
def test_given_mask_beside_an_automatic_one(scene, variant):
    def masker(maps: Tensor) -> Tensor:
        share = covered(maps)
        given = (share >= share.max() / 2).float() if variant == "released" else share
        found = torch.ones_like(maps[1:]) if variant == "none" else MASKERS[variant](maps[1:])
        return torch.cat([given, found])

    toy = Reference(latents(seed=8), TOY)
    found = scene.sample([dog(masks=SHAPE), toy], Use(variant))
    close(found, scene.by_hand([dog(), toy], Use(variant), masker))
    assert far(found, scene.sample([dog(), toy], Use(variant)))


@pytest.mark.parametrize("kind, placement", [("sd15", "encoder"), ("sd15", "both"), ("sdxl", "both")])
def test_blocks_in_the_encoder_equal_both_streams_by_hand(exact, kind, placement):
    """The other places of Fig. 8."""
    scene = Scene(exact(kind), placement=placement)
    found = scene.sample([dog()])
    close(found, scene.by_hand([dog()]))
    assert far(found, scene.plain())


def test_control_net_acts_on_the_picture_alone(scene):
    """The references' run gets nothing of it."""
    scene.positive = with_control(scene.model, scene.positive)
    control = scene.positive[0][1]["control"]

    def residuals(x: Tensor, timesteps: Tensor, context: Tensor) -> dict[str, list[Tensor]]:
        made = control.control_model(x=x, hint=control.cond_hint_original, timesteps=timesteps, context=context)
        return {place: [control.strength * each for each in made[place]] for place in ("output", "middle")}

    found = scene.sample([dog()])
    close(found, scene.by_hand([dog()], control=residuals))
    assert far(found, scene.by_hand([dog()]))


@pytest.mark.parametrize("kind", ["sd21", "sdxl_zsnr", "ModelSamplingDiscrete"])
def test_v_prediction_and_zero_terminal_snr(exact, kind):
    """The window lies so that another schedule's noise levels would give one step more or less."""
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    checkpoint = exact("sd15" if kind == "ModelSamplingDiscrete" else kind)
    if kind == "ModelSamplingDiscrete":
        checkpoint = (*ModelSamplingDiscrete().patch(checkpoint.model, "v_prediction", True), *checkpoint[1:])
    scene, use = Scene(checkpoint), Use("paper", window=(0.32, 0.9))
    found = scene.sample([dog()], use, steps=4)
    close(found, scene.by_hand([dog()], use, steps=4))
    assert far(found, scene.sample([dog()], steps=4)) and far(found, scene.plain(steps=4))


# ------------------------------------------------------------------------------------------------ through the node
def saved(scene: Scene, path: Path, **about) -> ViCo:
    """The scene's image blocks as a file holds them; as one of the authors' if nothing is told about them."""
    if about:
        save_file(scene.tensors, path, metadata_of(model=scene.model, **about))
    else:
        torch.save(scene.tensors, path)
    return read_vico(path)


@torch.inference_mode()
def applied(scene: Scene, vico: ViCo, image: Tensor, model=None, object_mask: str = AS_TRAINED) -> tuple:
    """MODEL and record of Apply ViCo."""
    return PersonalizeApplyViCo.execute(model or scene.model, vico, scene.vae, image, DOG, 1.0, 0.0, 1.0, object_mask,
                                        "both", 1, 0, "squash").args


def test_file_of_the_authors_acts_as_released(scene, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "OFFICIAL", {**files.OFFICIAL, "size": 128, "text_width": WIDTH_L})
    vico = saved(scene, tmp_path / "cross_attention-399.pt")
    image = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(5))
    found = {name: scene.plain(applied(scene, vico, image, object_mask=name)[0])
             for name in (AS_TRAINED, "as released", "Eq. 5")}
    assert torch.equal(found[AS_TRAINED], found["as released"])
    with torch.inference_mode():
        latent = scene.model.get_model_object("latent_format").process_in(scene.vae.encode(image))
    for name, variant in ((AS_TRAINED, "released"), ("Eq. 5", "paper")):
        close(found[name], scene.by_hand([Reference(latent, DOG)], Use(variant)))
    assert far(found[AS_TRAINED], found["Eq. 5"])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(scene, tmp_path, dtype):
    vico = saved(scene, tmp_path / "mine.safetensors", variant="paper", words=(DOG,), size=128)
    image = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(5))
    half, seen = load_computing_in(dtype, "sd15.safetensors"), set()
    patched, record = applied(scene, vico, image, half)
    blocks = patched.get_additional_models_with_key(KEY)[0].model
    for block in blocks.list:
        block.register_forward_hook(lambda module, inputs, output: seen.update(t.dtype for t in (*inputs[:2], output)))
    whole, expected = applied(scene, vico, image)
    found, exact, plain = scene.plain(patched), scene.plain(whole), scene.plain()
    assert seen == {dtype} == {parameter.dtype for parameter in blocks.parameters()}
    assert apart(found, exact) < min(1.5 * apart(scene.plain(half), plain), apart(plain, exact))
    for step in range(STEPS):
        assert apart(record.current.masks[step], expected.current.masks[step]) < 0.05
        assert difference(*(each.current.mean_map(DOG, step) for each in (record, expected))) < 0.2


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().mean())


# ------------------------------------------------------------------------------------------------ the record
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_record_holds_maps_and_masks_by_hand(scene, variant):
    """Fig. 18: in every step the map of each word in each layer, their mean, and the mean of the layers' masks."""
    given, seen = [Reference(latents(2), DOG), Reference(latents(seed=9), TOY)], []
    record = Record("Apply ViCo", every_step=True)
    scene.plain(scene.patched(given, Use(variant), record=record))
    scene.by_hand(given, Use(variant), seen=seen)
    run, spans = record.current, spans_in(scene.positive[0][1])
    assert len(seen) == STEPS and run.map_steps == (0, 1)
    for step, layers in enumerate(seen):
        masks, means = [], {DOG: [], TOY: []}
        for layer, maps in zip(run.layers, layers, strict=True):
            words = {word: maps[..., list(spans[word])].sum(-1) for word in means}
            for word, expected in words.items():
                stored(run.map(word, layer, step), square(expected))
                means[word].append(enlarged(square(expected)))
            masks.append(enlarged(square(MASKERS[variant](torch.cat([words[DOG][:2], words[TOY][2:]])))))
        for word, expected in means.items():
            stored(run.mean_map(word, step), torch.stack(expected).mean(0))
        stored(run.masks[step].float(), torch.stack(masks).mean(0))


def square(values: Tensor) -> Tensor:
    return values.unflatten(-1, (round(values.shape[-1] ** 0.5), -1))


def enlarged(maps: Tensor) -> Tensor:
    return F.interpolate(maps[:, None], (16, 16), mode="bilinear")[:, 0]


def stored(found: Tensor, expected: Tensor) -> None:
    """As close as float16 keeps it."""
    torch.testing.assert_close(found, expected.to(found), atol=1e-4, rtol=2e-3)


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


# ------------------------------------------------------------------------------------------------ speed
def unet_rows(model) -> list[int]:
    """Rows of every call of the U-Net that the MODEL makes while it samples, the references' included."""
    rows: list[int] = []
    hook = unet_of(model).denoiser.time_embed.register_forward_hook(lambda module, inputs,
                                                                    output: rows.append(len(output)))
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
    close(found, scene.by_hand([five]))


def test_reference_stops_after_the_last_image_block(scene):
    ran = []
    unet = unet_of(scene.model).denoiser
    hooks = [unet.output_blocks[i][0].register_forward_hook(lambda m, a, o, i=i: ran.append((i, len(o))))
             for i in (9, 10, 11)]
    try:
        scene.sample([dog()], batch=3)
    finally:
        for hook in hooks:
            hook.remove()
    assert [i for i, rows in ran if rows == 2] == [9, 10] * STEPS
    assert [i for i, rows in ran if rows == 6] == [9, 10, 11] * STEPS
