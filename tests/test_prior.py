"""Prior pictures: streams with row counts of their own, and a class that is kept while a subject is learned."""
from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from personalize.nodes.text.concept import Concept
from personalize.nodes.training.batch import Batch, Noised, Prior, Row
from personalize.nodes.training.diffusion import DiffusionLoss
from personalize.nodes.training.nodes_prior import PersonalizePriorPictures
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.parts.weights import AdapterPart
from personalize.nodes.training.plan import Settings
from personalize.nodes.training.prior import PriorPreservation, prior_terms
from personalize.nodes.training.recipe import TemplateRecipe
from support.pictures import MadePicture
from support.trainings import flat_gradient, in_place_of_a_step, subject, train

PARTS = (EmbeddingPart(), AdapterPart(lr=1e-2))
PROMPTS = ("a photo of a dog", "a dog", "two dogs at night")


def with_prior(of=None, rows=1, weight=1.0, pictures=3):
    """The subject with pictures of its class, each with a prompt of its own."""
    draw = torch.Generator().manual_seed(8)
    shown = tuple(MadePicture(torch.rand(1, 64, 64, 3, generator=draw), caption=PROMPTS[i], name=f"class {i}")
                  for i in range(pictures))
    return replace(of or subject(), prior=Prior(shown, rows, weight))


def batch_of(**counts: int) -> Batch:
    """A step with this many rows of each stream; rows and latents know their numbers."""
    rows = {stream: tuple(Row(0, i, 0, stream) for i in range(count)) for stream, count in counts.items()}
    latents = {stream: Noised(*[torch.arange(float(count)).view(-1, 1, 1, 1)] * 3, torch.arange(float(count)))
               for stream, count in counts.items()}
    return Batch(1, (), rows, latents)


# ------------------------------------------------------------------------------------------------ streams
@pytest.mark.parametrize("subjects, prior, at_once, expected", [
    (4, 1, 2, [(2, 1), (2, 0)]), (4, 4, 3, [(3, 3), (1, 1)]), (2, 5, 1, [(1, 3), (1, 2)]),
    (5, 2, 2, [(2, 1), (2, 1), (1, 0)]), (1, 3, 1, [(1, 3)])])
def test_each_stream_is_cut_by_its_own_rows(subjects, prior, at_once, expected):
    whole = batch_of(subject=subjects, reference=subjects, prior=prior)
    pieces = list(whole.micro_batches(at_once))
    assert [(len(piece.rows["subject"]), len(piece.rows["prior"])) for piece in pieces] == expected
    for stream, rows in whole.rows.items():
        assert sum((piece.rows[stream] for piece in pieces), ()) == rows
        assert torch.equal(torch.cat([piece.latents[stream].sigma for piece in pieces]), whole.latents[stream].sigma)
        assert sum(piece.shares[stream] for piece in pieces) == pytest.approx(1)
    assert all(piece.rows["reference"] == tuple(replace(row, prompt="reference") for row in piece.rows["subject"])
               for piece in pieces)


def test_every_prior_picture_is_shown_once_in_a_round():
    subjects = (with_prior(rows=2), subject(placeholder="<my-toy>"), with_prior(subject(placeholder="<my-cat>")))
    shown = [TemplateRecipe().rows(subjects, step, 3, seed=5)["prior"] for step in (1, 2, 3)]
    assert all([row.subject for row in rows] == [0, 0, 2] for rows in shown)
    for which, rounds in ((0, 2), (2, 1)):
        seen = [row.picture for rows in shown for row in rows if row.subject == which]
        assert sorted(seen) == sorted(list(range(3)) * rounds)
    assert all(row.prompt == PROMPTS[row.picture] for rows in shown for row in rows)
    assert "prior" not in TemplateRecipe().rows((subject(),), 1, 3, seed=5)


# ------------------------------------------------------------------------------------------------ loss and gradient
def first_gradient(checkpoint, settings, **method):
    found = {}

    def collect(trainer, batch):
        found["values"], _ = trainer._micro_batches(batch, measured=False)
        found["gradient"] = flat_gradient(trainer)

    with in_place_of_a_step(collect):
        train(checkpoint, settings, parts=PARTS, **method)
    return found["values"], found["gradient"]


def test_prior_rows_are_denoised_with_their_prompts_and_pull_with_their_weight(sd15):
    """As a training on the class pictures as a subject of their own, whose prompts hold no learned word."""
    settings = Settings(steps=1, batch_size=2)
    subjects = (with_prior(rows=3, weight=0.5),)
    own, alone = first_gradient(sd15, settings, subjects=subjects)
    both, together = first_gradient(sd15, settings, subjects=subjects, terms=(DiffusionLoss(), *prior_terms(subjects)))
    prior, pulled = first_gradient(sd15, settings, subjects=subjects, terms=prior_terms(subjects))
    assert both["diffusion"] == own["diffusion"] and both["prior preservation"] == prior["prior preservation"]
    torch.testing.assert_close(together, alone + pulled, atol=1e-4 * float(together.abs().max()), rtol=1e-3)
    assert pulled.abs().max() > 0

    expected = {}

    @torch.no_grad()
    def by_hand(trainer, batch):
        latents, session = batch.latents["prior"], trainer.session
        errors = []
        for i, row in enumerate(batch.rows["prior"]):
            cond = session.clip.encode_from_tokens(session.clip.tokenize(row.prompt))
            denoised = session.model.model.apply_model(
                latents.noisy[i:i + 1], latents.sigma[i:i + 1], c_crossattn=cond,
                transformer_options=session.transformer_options(latents.sigma[i:i + 1]))
            errors.append(((denoised - latents.clean[i:i + 1]) / latents.sigma[i]).square().mean())
        expected["loss"] = 0.5 * float(torch.stack(errors).mean())

    with in_place_of_a_step(by_hand):
        train(sd15, settings, subjects=subjects, parts=PARTS)
    assert prior["prior preservation"] == pytest.approx(expected["loss"], rel=1e-4)


def test_micro_batches_of_uneven_streams_give_the_same_step(exact):
    """The U-Net in float64: a row of its own may be rounded otherwise than among others."""
    sd15 = exact("sd15")
    subjects = (with_prior(rows=1), with_prior(subject(placeholder="<my-toy>"), rows=2, weight=3.0))
    method = dict(subjects=subjects, terms=(DiffusionLoss(), *prior_terms(subjects)))
    whole, gradient = first_gradient(sd15, Settings(steps=1, batch_size=4), **method)
    pieces, summed = first_gradient(sd15, Settings(steps=1, batch_size=4, micro_batch=1), **method)
    assert pieces == {name: pytest.approx(value, rel=1e-4) for name, value in whole.items()}
    torch.testing.assert_close(summed, gradient, atol=1e-4 * float(gradient.abs().max()), rtol=1e-3)


def test_a_loss_of_prior_pictures_needs_some(sd15):
    with in_place_of_a_step(lambda trainer, batch: trainer.rehearse()), \
            pytest.raises(ValueError, match="no subject has prior pictures; connect Prior Pictures between"):
        train(sd15, Settings(steps=1), terms=(DiffusionLoss(), PriorPreservation()))


def test_the_class_is_kept(sd15):
    """Loss of the class pictures at draws that no step saw, after the same steps on the subject."""
    subjects, settings = (with_prior(rows=3),), Settings(steps=12, batch_size=2)
    losses = {}

    def train_with(*terms):
        def each_step(trainer, record):
            if record["step"] == settings.steps:
                losses[len(terms)] = [class_loss(trainer, 100 + i) for i in range(4)]
            return True

        train(sd15, settings, subjects=subjects, terms=terms, parts=PARTS, each_step=each_step)

    train_with(DiffusionLoss())
    train_with(DiffusionLoss(), PriorPreservation())
    assert sum(losses[2]) < sum(losses[1])


def class_loss(trainer, step: int) -> float:
    latents, noise = trainer.batch(step).latents["prior"], trainer.session.noise
    prompts = [row.prompt for row in trainer.batch(step).rows["prior"]]
    with torch.no_grad():
        cond = torch.cat([trainer.session.clip.encode_from_tokens(trainer.session.clip.tokenize(p)) for p in prompts])
        predicted = trainer.session.model.model.apply_model(
            latents.noisy, latents.sigma, c_crossattn=cond,
            transformer_options=trainer.session.transformer_options(latents.sigma))
    return float(noise.output_error(latents.clean, latents.sigma, predicted).square().mean())


# ------------------------------------------------------------------------------------------------ node
def node(images, captions="a photo of a {}", of=None, per_step=1, weight=1.0):
    made = PersonalizePriorPictures.execute([(of or subject(),)], captions.split("|"), [per_step], [weight], images)
    return made.args[0][-1].prior


def test_pictures_get_the_subjects_size_and_a_prompt_each():
    images = [torch.rand(2, 80, 100, 3), torch.rand(1, 64, 64, 3)]
    prior = node(images, per_step=2, weight=0.5)
    assert [(picture.count, picture.size) for picture in prior.pictures] == [(1, (64, 64))] * 3
    assert [picture.caption for picture in prior.pictures] == ["a photo of a dog"] * 3
    assert (prior.rows, prior.weight) == (2, 0.5)
    assert torch.equal(next(prior.pictures[2].made())[0], images[1])
    assert [picture.caption for picture in node(images, "one {}\n\ntwo\n{} at night").pictures] == [
        "one dog", "two", "dog at night"]
    assert [picture.caption for picture in node(images, "one|two|three").pictures] == ["one", "two", "three"]


def test_of_a_chain_the_last_subject_gets_the_pictures():
    chain = (subject(), subject(placeholder="<my-toy>"))
    first, last = PersonalizePriorPictures.execute([chain], ["a toy"], [1], [1.0], [torch.rand(1, 64, 64, 3)]).args[0]
    assert first.prior is None and last.prior.pictures[0].caption == "a toy" and chain[1].prior is None


@pytest.mark.parametrize("changes, sentence", [
    ({"captions": "one\ntwo"}, "There are 2 captions for 3 prior pictures; write one line for all, or"),
    ({"captions": ""}, "There are 0 captions for 3 prior pictures"),
    ({"captions": "<my-dog> at night"}, "The caption '<my-dog> at night' names <my-dog>, but prior pictures"),
    ({"of": replace(subject(), concept=Concept("<my-dog>", "", ""))}, "Concept <my-dog> has no class words to put"),
    ({"of": with_prior()}, "<my-dog> has prior pictures already; connect all of them to images of one Prior Pictures"),
], ids=["too few", "none", "the subject", "no class words", "twice"])
def test_what_cannot_be_a_prior_is_said(changes, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        node([torch.rand(3, 64, 64, 3)], **changes)
