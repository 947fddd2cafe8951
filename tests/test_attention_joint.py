"""Attention recorded while models sample in which text and picture share a sequence, against a plain softmax."""
from __future__ import annotations

import pytest
import torch

from personalize.nodes.attention.masks import OTSU
from personalize.nodes.papers.core.test_time import NoisedScene
from personalize.nodes.recording.nodes_mask import PersonalizeSubjectMask
from personalize.nodes.recording.nodes_record import (
    EVERY_STEP,
    MEAN,
    PersonalizeAttentionOfLatent,
    PersonalizeRecordAttention,
)
from personalize.nodes.recording.nodes_show import EACH_MAP, EACH_STEP, PersonalizeShowAttention, PersonalizeShowMasks
from personalize.nodes.text.layout import layout_in
from personalize.nodes.text.nodes_prompts import PersonalizeEncodeWithSpans
from personalize.nodes.training.assembly import open_training
from personalize.nodes.training.diffusion import DiffusionLoss
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.plan import Plan, Settings
from personalize.nodes.training.recipe import TemplateRecipe
from support.recorded import recording
from support.sampling import encoded, sample
from support.trainings import subject

PROMPT = "a photo of a dog and a red hat"
SAME_LENGTH = "a photo of a cat and a red boy"
OVERRIDE = "optimized_attention_override"
REFERENCE = torch.randn(1, 16, 8, 6, generator=torch.Generator().manual_seed(0))


def with_words(clip, text=PROMPT, words="dog\nred hat", **options):
    with torch.inference_mode():
        (cond, found), = PersonalizeEncodeWithSpans.execute(clip, text, words)[0]
    return [[cond, {**found, **options}]]


def draw(model, positive, negative, size=(12, 10), batch=1, **more):
    return sample(model, positive, negative, latent=torch.zeros(batch, 16, *size), **more)


def seen_by_another(model, factor=1.0):
    """(MODEL, seen): with an override as other packs set it, which scales what attention gives. seen: queries and keys
    of the positive prompt's rows in each joint layer, with the number of prompts in the call."""
    seen = []

    def override(function, query, key, *args, **kwargs):
        options = kwargs["transformer_options"]
        sides = options["cond_or_uncond"]
        if options.get("block_type") == "double" and 0 in sides:
            query_rows, key_rows = (each.chunk(len(sides))[sides.index(0)].double() for each in (query, key))
            seen.append((query_rows, key_rows, len(sides)))
        return function(query, key, *args, **kwargs) * factor

    model = model.clone()
    model.model_options["transformer_options"][OVERRIDE] = override
    return model, seen


def filled(model, rows):
    """Rows of a text or a picture in the sequence: Z-Image's are filled up to a multiple of 32."""
    return rows if model.model.diffusion_model.pad_tokens_multiple is None else -(-rows // 32) * 32


def plain_maps(query, key, positions, first, grid):
    """(rows, h, w): softmax over the whole sequence, mean over heads, of the picture's rows from `first` on."""
    weights = torch.softmax(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5, -1).mean(1)
    return weights[:, first:first + grid[0] * grid[1], positions].sum(-1).unflatten(1, grid)


def close(found, expected):
    return torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-7)


# ------------------------------------------------------------------------------------------------ values
@pytest.mark.parametrize("negative, together, size, grid", [
    ("", 1, (13, 9), (7, 5)), (SAME_LENGTH, 2, (12, 10), (6, 5))], ids=["prompts run apart, odd", "together, even"])
def test_maps_are_a_plain_softmax(any_transformer, negative, together, size, grid):
    """Also: the recorder changes no picture, and leaves nothing behind."""
    model, clip, _ = any_transformer
    positive, negative = with_words(clip), encoded(clip, negative)
    layout = layout_in(positive[0][1])
    other, seen = seen_by_another(model)
    plain = draw(other, positive, negative, size, batch=2, steps=1)
    assert [sides for *_, sides in seen] == [together] * 2
    recorded, record = recording(model, every_step=False)
    assert torch.equal(draw(recorded, positive, negative, size, batch=2, steps=1), plain)
    run = record.sampling(plain)
    assert (run.words, run.size, run.factor) == (("dog", "red hat"), size, 8)
    for layer, (query, key, _) in zip(run.layers, seen, strict=True):
        for word in run.words:
            found, first = run.map(word, layer), filled(model, layout.length)
            assert found.shape == (2, *grid) and not close(found[:1], found[1:].double())
            assert close(found, plain_maps(query, key, layout.find(word), first, grid))
    assert torch.equal(draw(model, positive, negative, size, batch=2, steps=1), plain)
    assert OVERRIDE not in model.model_options["transformer_options"] and not model.wrappers


def test_exchanged_words_exchange_their_maps(any_transformer):
    """Up to what their places and neighbours do to them."""
    model, clip, _ = any_transformer
    maps = []
    for text in ("a dog, a hat", "a hat, a dog"):
        recorded, record = recording(model, every_step=False)
        draw(recorded, with_words(clip, text, "dog\nhat"), encoded(clip, ""), (16, 16), steps=1)
        run = record.current
        maps.append({word: run.map(word, run.layers[0]).flatten() for word in ("dog", "hat")})
    for word in maps[0]:
        likeness = {other: float(torch.corrcoef(torch.stack([maps[0][word], maps[1][other]]))[0, 1])
                    for other in maps[1]}
        assert max(likeness, key=likeness.get) == word


def test_pictures_for_reference_are_told_from_the_one_that_is_drawn(z_image):
    """The sequence: the reference's text, which is empty, the prompt, the reference, the picture."""
    model, clip, _ = z_image
    positive = with_words(clip, reference_latents=[REFERENCE])
    other, seen = seen_by_another(model)
    plain = draw(other, positive, encoded(clip, ""), steps=1)
    recorded, record = recording(model, every_step=False)
    assert torch.equal(draw(recorded, positive, encoded(clip, ""), steps=1), plain)
    run = record.current
    for layer, (query, key, _) in zip(run.layers, seen, strict=True):
        assert query.shape[2] == 4 * 32
        places = [32 + position for position in layout_in(positive[0][1]).find("red hat")]
        assert close(run.map("red hat", layer), plain_maps(query, key, places, 3 * 32, (6, 5)))


def test_areas_are_put_in_their_place(z_image):
    model, clip, _ = z_image
    positive = with_words(clip, area=(6, 10, 6, 0), strength=2.0)
    recorded, record = recording(model, every_step=False)
    plain = draw(model, positive, encoded(clip, ""), steps=1)
    assert torch.equal(draw(recorded, positive, encoded(clip, ""), steps=1), plain)
    found = record.current.map("dog", record.current.layers[0])[0]
    assert found.shape == (6, 5) and not found[:2].any() and (found[3:] > 0).all()


# ------------------------------------------------------------------------------------------------ beside other patches
@pytest.mark.parametrize("last", ["the other", "the recorder"])
def test_other_packs_attention_is_kept(z_image, last):
    """A second recorder is beside it, too."""
    model, clip, _ = z_image
    positive, negative = with_words(clip), encoded(clip, "")
    other, seen = seen_by_another(model, 0.5)
    expected, kept = draw(other, positive, negative, steps=1), list(seen)
    assert not torch.equal(expected, draw(model, positive, negative, steps=1))
    records = []
    made = other if last == "the recorder" else model
    for _ in range(2):
        made, record = recording(made, every_step=False)
        records.append(record)
    if last == "the other":
        made, seen = seen_by_another(made, 0.5)
    seen.clear()
    assert torch.equal(draw(made, positive, negative, steps=1), expected) and len(seen) == len(kept) == 2
    positions, first = layout_in(positive[0][1]).find("dog"), filled(model, positive[0][0].shape[1])
    for run in (record.current for record in records):
        for layer, (query, key, _) in zip(run.layers, kept, strict=True):
            assert close(run.map("dog", layer), plain_maps(query, key, positions, first, (6, 5)))


@pytest.mark.parametrize("kind, channels", [("sd15", 4), ("z_image", 16)])
def test_training_on_a_model_that_records_is_the_same(request, kind, channels):
    """It records in a sampler's run alone."""
    model, clip, _ = request.getfixturevalue(kind)
    recorded, record = recording(model)
    latents = NoisedScene(torch.randn(1, channels, 8, 8, generator=torch.Generator().manual_seed(0)))
    found = []
    for each in (model, recorded):
        made = Plan(each, clip, None, (subject(1),), (EmbeddingPart(lr=0.1),), (DiffusionLoss(),), TemplateRecipe(),
                    Settings(steps=2, checkpointing=True))
        with open_training(made, latents=latents) as trainer:
            trainer.run(lambda trainer, record: True)
            found.append([entry["loss"] for entry in trainer.history])
    assert found[0] == found[1] and found[0][0] != found[0][1]
    with pytest.raises(ValueError, match="The record of the test is empty"):
        record.sampling()


# ------------------------------------------------------------------------------------------------ nodes
@pytest.mark.parametrize("kind, channels", [("sd15", 4), ("z_image", 16)])
def test_layers_and_steps_are_chosen(request, kind, channels):
    import comfy.samplers

    model, clip, _ = request.getfixturevalue(kind)
    recorded, record = PersonalizeRecordAttention.execute(model, "dog", "by number", "1", EVERY_STEP, 0.0, 0.5, clip,
                                                         PROMPT).args
    sample(recorded, encoded(clip, PROMPT), encoded(clip, ""), latent=torch.zeros(1, channels, 16, 16), steps=4)
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", 4)[:-1]
    early = tuple(step for step, sigma in enumerate(sigmas) if sigma >= sampling.percent_to_sigma(0.5))
    assert [layer.order for layer in record.current.layers] == [1]
    assert record.current.map_steps == early and 0 < len(early) < 4


def test_strides_are_those_of_the_model(z_image):
    with pytest.raises(ValueError, match="layers is 'stride 4' but the model's attention .* has only strides 2; "):
        PersonalizeRecordAttention.execute(z_image.model, "dog", "stride 4", "", MEAN, 0.0, 1.0)


def test_a_model_that_cannot_be_read_is_refused_by_name(z_image):
    model = z_image.model.clone()
    model.add_object_patch("diffusion_model", torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="The model .* is of no family that this pack knows, or has no .*Z-Image"):
        PersonalizeRecordAttention.execute(model, "dog", "all", "", MEAN, 0.0, 1.0)


def test_a_given_latent(any_transformer):
    """The noisiest timestep first; t of 1000 is the flow's level with this number."""
    model, clip, _ = any_transformer
    latent, given = torch.randn(2, 16, 12, 10, generator=torch.Generator().manual_seed(1)), []
    positive = with_words(clip)
    other, seen = seen_by_another(model)

    def keep(executor, x, *args, **kwargs):
        given.append(x)
        return executor(x, *args, **kwargs)

    other.add_wrapper_with_key("diffusion_model", "test", keep)
    inputs = (positive, {"samples": latent}, "dog", "200, 600", 5, "all", "", MEAN)
    with torch.inference_mode():
        record = PersonalizeAttentionOfLatent.execute(other, *inputs)[0]
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(5))
    for x, number in zip(given, (600, 200), strict=True):
        sigma = float(model.get_model_object("model_sampling").sigmas[number])
        expected = (1 - sigma) * model.model.process_latent_in(latent) + sigma * noise
        torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)
    positions, first = layout_in(positive[0][1]).find("dog"), filled(model, positive[0][0].shape[1])
    for number, layer in enumerate(record.current.layers):
        steps = [plain_maps(*seen[2 * step + number][:2], positions, first, (6, 5)) for step in range(2)]
        assert close(record.current.map("dog", layer), torch.stack(steps).mean(0))


def test_what_is_shown(z_image):
    model, clip, _ = z_image
    positive = with_words(clip)
    recorded, record = PersonalizeRecordAttention.execute(model, "", "all", "", EVERY_STEP, 0.0, 1.0).args
    latent = {"samples": draw(recorded, positive, encoded(clip, ""), (16, 12), batch=2)}
    run = record.sampling(latent["samples"])
    heat, _, maps = PersonalizeShowAttention.execute(record, EACH_STEP, EACH_MAP, "viridis", 0.6, 0, None, latent).args
    assert heat.shape == (2 * 2 * 2, 128, 96, 3)
    assert maps.amin((1, 2)).tolist() == [0] * 8 and maps.amax((1, 2)).tolist() == [1] * 8
    mask, _ = PersonalizeSubjectMask.execute(record, "dog", OTSU, 0.3, None, latent).args
    assert mask.shape == (2, 128, 96)
    large = torch.nn.functional.interpolate(run.mean_map("dog")[:, None], (128, 96), mode="bilinear")[:, 0]
    for inside, values in zip(mask.bool(), large):
        assert values[inside].min() >= values[~inside].max() > 0
    with pytest.raises(ValueError, match="The record of Record Attention holds no masks"):
        PersonalizeShowMasks.execute(record, EACH_STEP, 0.6, None, latent)
