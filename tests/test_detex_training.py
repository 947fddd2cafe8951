"""Training a word apart from poses and backgrounds: losses against loops, prompts, gradients, what is refused."""
from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from personalize.nodes.papers.detex.loss import attribute_error
from personalize.nodes.papers.detex.mapper import AttributeMapper
from personalize.nodes.papers.detex.nodes_train import PersonalizeTrainDetex
from personalize.nodes.papers.detex.parts import AttributesPart
from personalize.nodes.papers.detex.recipe import AttributeRecipe, WithForeground
from personalize.nodes.papers.detex.seeing import image_features
from personalize.nodes.papers.detex.terms import layers_looked_at
from personalize.nodes.papers.detex.words import attribute_word
from personalize.nodes.training.batch import Prior
from personalize.nodes.training.diffusion import DiffusionLoss
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.parts.weights import KeyValuePart
from personalize.nodes.training.plan import Settings
from personalize.nodes.training.prior import PriorPreservation
from personalize.nodes.training.recipe import TemplateRecipe
from support.detex_training import SIDE, WORD, MapsByHand, loss_in_loops, masked_subject, method
from support.pictures import MadePicture
from support.trainings import CORE, flat_gradient, gradients, in_place_of_a_step, move, sample, train
from tiny import vision

pytestmark = pytest.mark.usefixtures("execute")  # the server object that runs report to

STEP = 1e-4


def rows_of(recipe: AttributeRecipe, subjects, steps: int = 1, size: int = 4, seed: int = 0):
    return [row for step in range(1, steps + 1) for row in recipe.rows(subjects, step, size, seed)["subject"]]


# ------------------------------------------------------------------------------------------------ mathematics
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("normalised", [False, True])
def test_the_error_of_a_map_is_that_of_loops(normalised, squared):
    draw = torch.Generator().manual_seed(1)
    maps, masks = (torch.rand(3, 16, generator=draw, dtype=torch.float64) for _ in range(2))
    for row, found in enumerate(attribute_error(maps, masks, normalised, squared)):
        largest = max(maps[row].tolist()) if normalised else 1.0
        errors = [a / largest - m for a, m in zip(maps[row].tolist(), masks[row].tolist(), strict=True)]
        assert float(found) == pytest.approx(sum(e * e if squared else abs(e) for e in errors) / 16, rel=1e-12)


@pytest.mark.parametrize("squared", [False, True])
def test_the_gradient_of_the_error_of_a_map_is_the_slope(squared):
    draw = torch.Generator().manual_seed(7)
    maps, masks = (torch.rand(2, 9, generator=draw, dtype=torch.float64) for _ in range(2))
    assert torch.autograd.gradcheck(lambda given: attribute_error(given, masks, True, squared), maps.requires_grad_())


def test_a_map_of_nothing_has_an_error_that_is_a_number():
    assert float(attribute_error(torch.zeros(1, 4), torch.ones(1, 4))) == 1.0


def test_a_mapper_has_as_many_numbers_as_the_paper_s_and_begins_near_its_word():
    word = torch.randn(768, generator=torch.Generator().manual_seed(2)) * 0.014
    mapper = AttributeMapper(768, 768).start_at(word, torch.Generator().manual_seed(3))
    assert sum(p.numel() for p in mapper.parameters()) == 1_771_776
    seen = torch.nn.functional.normalize(torch.randn(2, 768), dim=1)
    with torch.no_grad():
        made = mapper(seen)
    x = seen.double()
    for layer in (mapper.first, mapper.second, mapper.third):
        x = x @ layer.weight.detach().double().T + layer.bias.detach().double()
        x = x if layer is mapper.third else torch.where(x < 0, 0.01 * x, x)
    torch.testing.assert_close(made.double(), x, rtol=1e-4, atol=1e-6)
    distances = (made - word).norm(dim=1)
    assert (distances < 0.5 * made.norm(dim=1)).all() and not torch.equal(made[0], made[1])


# ------------------------------------------------------------------------------------------------ rows
def test_words_stand_inside_the_brackets_of_the_placeholder():
    assert attribute_word("<my-dog>", "pose", 2) == "<my-dog-pose-2>"
    assert attribute_word("sks", "background", 11) == "sks-background-11"


def test_whole_and_filtered_rows_come_by_their_share_with_their_own_prompts():
    recipe = AttributeRecipe("view", filtered=0.3)
    rows = rows_of(recipe, recipe.prepared((masked_subject(4),)), steps=500)
    filtered = [row for row in rows if row.variant == 1]
    assert len(filtered) / len(rows) == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / len(rows)))
    for row in rows:
        pose, background = (attribute_word(WORD, attribute, row.picture + 1) for attribute in ("pose", "background"))
        whole = f"Photo of a <my-dog> dog with {pose} view in {background} background"
        assert row.prompt == (whole.split(" in ")[0] if row.variant else whole) and not row.inside
    assert [row.picture for row in rows[:4]] != [row.picture for row in rows[4:8]] or rows[8:12] != rows[:4]
    assert all({row.picture for row in rows[i:i + 4]} == {0, 1, 2, 3} for i in range(0, 40, 4))


@pytest.mark.parametrize("share, variants", [(0.0, {0}), (1.0, {1})])
def test_none_and_all_of_the_rows(share, variants):
    recipe = AttributeRecipe(filtered=share)
    assert {row.variant for row in rows_of(recipe, recipe.prepared((masked_subject(4),)), steps=20)} == variants


def test_a_picture_without_a_mask_keeps_its_background():
    recipe = AttributeRecipe(filtered=1.0)
    prepared = recipe.prepared((masked_subject(3, unmasked=1),))
    rows = rows_of(recipe, prepared, steps=9, size=3)
    assert {(row.picture, row.variant) for row in rows} == {(0, 1), (1, 1), (2, 0)}
    assert all(("background" in row.prompt) == (row.picture == 2) for row in rows)


@pytest.mark.parametrize("blank", [0.0, 0.5, 1.0])
def test_a_filtered_picture_is_blank_where_its_mask_is_not(blank):
    picture = masked_subject(1).pictures[0]
    (pixels, masks), (filtered, again) = WithForeground(picture, blank).made()
    assert torch.equal(masks, again)
    for row, column in ((0, 0), (20, 24), (31, 33), (63, 63), (20, 45)):
        share = float(masks[0, row, column])
        wanted = share * pixels[0, row, column] + (1 - share) * blank
        torch.testing.assert_close(filtered[0, row, column], wanted)
    assert float(filtered[0, 0, 0].mean()) == blank and torch.equal(filtered[0, 20, 24], pixels[0, 20, 24])


def test_prior_pictures_are_seen_beside_them():
    shown = MadePicture(torch.rand(1, SIDE, SIDE, 3), caption="Photo of a dog")
    subject = replace(masked_subject(), prior=Prior((shown,), rows=2))
    rows = AttributeRecipe().rows(AttributeRecipe().prepared((subject,)), 1, 4, 0)
    assert [row.prompt for row in rows["prior"]] == ["Photo of a dog"] * 2 and len(rows["subject"]) == 4


def test_of_filtered_rows_only_the_inside_counts_where_that_is_asked_for(sd15):
    """The masked diffusion loss of Eq. 6 in rows whose background is blank, and the plain one in the others."""
    found = []

    class Compared(DiffusionLoss):
        def __call__(self, got, batch, model):
            loss, latents = super().__call__(got, batch, model), batch.latents["subject"]
            error = model.noise.output_error(latents.clean, latents.sigma, got.predicted("prediction")).square()
            rows = []
            for i, row in enumerate(batch.rows["subject"]):
                weight = latents.masks[i] if row.inside else torch.ones_like(latents.masks[i])
                rows.append(float((error[i].detach() * weight).sum() / (weight.sum() * len(error[i]))))
            assert float(loss.detach()) == pytest.approx(sum(rows) / len(rows), rel=1e-4)
            found.extend(row.inside for row in batch.rows["subject"])
            return loss

    train(sd15, Settings(steps=3, batch_size=4),
          **{**method(False), "terms": (Compared(),), "recipe": AttributeRecipe(inside=True)})
    assert set(found) == {True, False}


# ------------------------------------------------------------------------------------------------ gradients
@pytest.mark.parametrize("kind, normalised, squared", [
    ("sd15", True, False), ("sd15", False, True), ("sdxl", True, False), ("sd21", True, True)])
def test_the_loss_is_that_of_loops_over_queries_and_keys(exact, kind, normalised, squared):
    seen = []

    def compare(trainer, batch):
        with MapsByHand(trainer.session.model) as hand:
            values, _ = trainer._micro_batches(batch, measured=False)
        rows, latents = batch.rows["subject"], batch.latents["subject"]
        assert len(hand.maps) == len(layers_looked_at(trainer.objective.text.layers)) > 1
        tokens = [trainer.objective.text.tokenizer(row.prompt) for row in rows]
        spans = [[each.layout.span(attribute_word(WORD, attribute, row.picture + 1))
                  for attribute in ("pose", "background")] for each, row in zip(tokens, rows, strict=True)]
        places = [(pose[0], background[0] if background else None) for pose, background in spans]
        wanted = loss_in_loops(torch.stack(hand.maps).mean(0), latents.masks[:, 0], places, normalised, squared)
        assert values["attribute attention"] == pytest.approx(0.01 * wanted, rel=1e-5)
        seen.extend(places)

    with in_place_of_a_step(compare):
        train(exact(kind), Settings(steps=2, batch_size=4), **method(normalised=normalised, squared=squared))
    assert {background is None for _, background in seen} == {True, False}


@pytest.mark.parametrize("mapped", [True, False])
def test_the_gradient_is_the_slope(exact, mapped):
    """Of the words; Train Key/Value leaves out what the start token would teach."""
    found, how = [], method(mapped, weight=1.0, normalised=False, squared=True)  # smooth, as no largest value changes
    how["parts"] = tuple(part for part in how["parts"] if not isinstance(part, KeyValuePart))

    def measure(trainer, batch):
        def loss_at(shift):
            move(trainer, shift)
            value = sum(trainer._micro_batches(batch, measured=False)[0].values())
            move(trainer, -shift)
            return value

        trainer._micro_batches(batch, measured=False)
        gradient = flat_gradient(trainer).clone()
        for group in trainer.groups:
            assert any(p.grad is not None and p.grad.any() for p in group.params), group.name
        steepest = gradient / gradient.norm()
        side = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(1))
        for direction in (steepest, steepest + side / side.norm()):
            slope = (loss_at(STEP * direction) - loss_at(-STEP * direction)) / (2 * STEP)
            found.append((slope, float(gradient @ direction)))

    with in_place_of_a_step(measure):
        train(exact("sd15"), Settings(steps=1, batch_size=4), **how)
    for slope, expected in found:
        assert expected > 0 and slope == pytest.approx(expected, rel=5e-3)


def test_micro_batches_have_the_same_gradient(exact):
    how = method(weight=1.0)
    whole = gradients(exact("sd15"), how, batch_size=4)
    parts = gradients(exact("sd15"), how, batch_size=4, micro_batch=1)
    assert (whole - parts).norm() < 1e-5 * whole.norm()


def test_a_filtered_row_pulls_at_no_background(sd15):
    """With every background blank the background mapper learns nothing, the pose mapper does."""
    seen = []

    def look(trainer, batch):
        trainer._micro_batches(batch, measured=False)
        seen.extend((group.name, sum(float(p.grad.norm()) for p in group.params if p.grad is not None))
                    for group in trainer.groups)

    with in_place_of_a_step(look):
        train(sd15, Settings(steps=1, batch_size=4), **method(filtered=1.0))
    norms = dict(seen)
    assert norms["background mapper"] == 0 < norms["pose mapper"]


@pytest.mark.parametrize("mapped", [True, False])
def test_a_stopped_run_goes_on_exactly_beside_core_and_prior_pictures(sd15, mapped):
    model, clip, _ = sd15
    before, halfway = sample(model, clip), []
    shown = MadePicture(torch.rand(1, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(8)), caption="a dog")
    how = method(mapped)
    how |= {"terms": (*how["terms"], *CORE, PriorPreservation()),
            "subjects": (replace(masked_subject(), prior=Prior((shown,))),)}

    def keep(trainer, record):
        state = trainer.state()
        halfway.append(replace(state, tensors={name: t.clone() for name, t in state.tensors.items()},
                               history=list(state.history)))
        return True

    whole, _, end = train(sd15, Settings(steps=3, batch_size=2), each_step=keep, **how)
    again, _, resumed = train(sd15, Settings(steps=3, batch_size=2), resume=halfway[0], **how)
    assert [record["loss"] for record in again.history] == [record["loss"] for record in whole.history]
    assert all(torch.equal(resumed.tensors[name], value) for name, value in end.tensors.items())
    assert torch.equal(sample(model, clip), before)


def test_every_picture_has_words_of_its_own_and_the_attention_loss_pulls_them_to_their_parts(sd15):
    """After some steps by the attention loss alone its value is lower, and not at rate 0."""
    def last(rate: float) -> tuple[float, float]:
        how = method(rate=rate, filtered=0.0, weight=1.0)
        trainer, *_ = train(sd15, Settings(steps=30, batch_size=3), **{**how, "terms": how["terms"][1:]})
        losses = [record["loss"] for record in trainer.history]
        words = trainer.shown_vectors()
        vectors = [words[attribute_word(WORD, attribute, i)]["clip_l"] for attribute in ("pose", "background")
                   for i in (1, 2, 3)]
        assert len({tuple(v.flatten().tolist()) for v in vectors}) == 6
        return sum(losses[:5]), sum(losses[-5:])

    began, ended = last(3e-3)
    assert ended < 0.9 * began
    still = last(0.0)
    assert still[1] > 0.9 * still[0]


# ------------------------------------------------------------------------------------------------ refusals
def test_masks_are_asked_for(sd15):
    how = method(False)
    with pytest.raises(ValueError, match="no picture of <my-dog> has one; make them with Subject Mask"):
        train_checked(sd15, {**how, "subjects": (masked_subject(3, unmasked=3),)})
    train_checked(sd15, {**how, "subjects": (masked_subject(3, unmasked=1),)})
    train_checked(sd15, {**how, "subjects": (masked_subject(3, unmasked=3),), "terms": (DiffusionLoss(),)})


def train_checked(checkpoint, how) -> None:
    """Two steps, after the look ahead that a job begins with."""
    from personalize.nodes.training.assembly import open_training
    from personalize.nodes.training.plan import Plan

    plan = Plan(*checkpoint, how["subjects"], how["parts"], how["terms"], how["recipe"], Settings(2, batch_size=3))
    with torch.inference_mode(), open_training(plan) as trainer:
        trainer.rehearse()
        trainer.run(lambda trainer, record: True)


def test_one_picture_is_enough(sd15):
    train_checked(sd15, {**method(), "subjects": (masked_subject(1),)})


def test_another_recipe_is_named(sd15):
    with pytest.raises(ValueError, match="only prompts of Train DETEX hold; connect its recipe"):
        train(sd15, Settings(1), **{**method(False), "recipe": TemplateRecipe()})


def test_no_image_encoder_is_a_sentence(sd15):
    part = AttributesPart(None, "", True)
    with pytest.raises(ValueError, match="clip_vision is missing"):
        train(sd15, Settings(1), **{**method(False), "parts": (part,)})


@pytest.mark.parametrize("part, name", [(EmbeddingPart(), "Train Embedding"), (KeyValuePart(), "Train Key/Value"),
                                        (AttributesPart(None, ""), "Train DETEX")])
def test_a_part_that_is_there_twice_is_named(part, name):
    with pytest.raises(ValueError, match=f"previous holds {name}, which Train DETEX does itself"):
        PersonalizeTrainDetex.execute(None, "animate", 1e-5, 0.5, previous=(part,))


def test_the_node_gives_parts_and_recipe():
    trainable, recipe = PersonalizeTrainDetex.execute(vision.load(), "inanimate", 2e-5, 0.25, "expression", "white",
                                                      True, True).result
    assert [type(part).__name__ for part in trainable] == ["EmbeddingPart", "KeyValuePart", "AttributesPart"]
    assert recipe == AttributeRecipe("expression", 0.25, 1.0, True)
    assert PersonalizeTrainDetex.execute(vision.load(), "inanimate", 2e-5, 0.5).result[1].pose_is == "view"


def test_what_is_seen_is_the_picture_as_it_came():
    """Features of the unfiltered picture, of length 1, as ComfyUI's own encoder gives them of the same pixels."""
    encoder = vision.load()
    image = torch.rand(2, 40, 56, 3, generator=torch.Generator().manual_seed(4))
    found = image_features(encoder, image)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    assert not torch.allclose(found[0], found[1])
    picture = masked_subject(1).pictures[0]
    assert torch.equal(WithForeground(picture).photograph(64), picture.photograph(64))
