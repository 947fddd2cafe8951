"""XTI: a word with vectors of its own for every cross-attention layer, in training."""
from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import folder_paths
import numpy as np
import pytest
import torch
from PIL import Image

from personalize.nodes.families.unet import UNet
from personalize.nodes.papers.context.terms import MaskedLanguageLoss
from personalize.nodes.text.concept import initial_vectors
from personalize.nodes.text.encode import encode
from personalize.nodes.text.vectors import WordVectors
from personalize.nodes.training.diffusion import DiffusionLoss
from personalize.nodes.training.interfaces import Maps, Needs
from personalize.nodes.training.nodes_per_layer import PersonalizeApplyPerLayerConcept, PersonalizeTrainPerLayer
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.parts.per_layer import PerLayerPart
from personalize.nodes.training.parts.weights import UNetPart
from personalize.nodes.training.plan import Settings
from personalize.nodes.training.preview import preview_noise
from support.attention_by_hand import naive_attention, projections
from support.layers_by_hand import cross_attentions, handed
from support.masked_words import TEMPLATES, untrained
from support.sampling import encoded
from support.trainings import flat_gradient, in_place_of_a_step, make_job, run, subject, train

PER_LAYER = (PerLayerPart(0.05),)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_equal_vectors_have_the_loss_of_plain_conditioning(kind, request):
    """To rounding: the encoder runs on more prompts at once, whose products some processors round otherwise."""
    checkpoint, losses = request.getfixturevalue(kind), []
    for part in (EmbeddingPart(), PerLayerPart()):
        trainer, _, _ = train(checkpoint, Settings(steps=1, batch_size=2), parts=(part,))
        losses.append(trainer.history[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def parted(checkpoint, spread: float = 0.3):
    """A subject whose word is another one to each layer."""
    plain, draw = subject(), torch.Generator().manual_seed(7)
    rows, layers = initial_vectors(plain.concept, checkpoint[1]), len(UNet(checkpoint[0].model.diffusion_model).layers)
    vectors = {key: v + spread * v.std() * torch.randn(layers, *v.shape, generator=draw) for key, v in rows.items()}
    return replace(plain, concept=plain.concept.with_vectors(WordVectors(vectors, "layer")))


@dataclass(frozen=True)
class Looking(DiffusionLoss):
    """Keeps what it got."""

    got: ClassVar[list] = []

    def needs(self, batch, text, rng):
        prediction = super().needs(batch, text, rng).passes["prediction"]
        first, last = text.layers[0], text.layers[-1]
        return Needs(passes={"prediction": prediction}, maps={
            "mean": Maps(prediction, text.layers), "pixels": Maps(prediction, (first, last), "pixels", ((5,),))})

    def __call__(self, got, batch, model):
        self.got.append((got.predicted("prediction").detach(), got.maps))
        return super().__call__(got, batch, model)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_predictions_maps_and_gradients_are_those_of_a_loop_over_the_layers(kind, exact):
    """By hand: one encoding for each layer, which hooks give to the attentions in the order of their calls."""
    checkpoint, compared = exact(kind), []
    attentions = cross_attentions(checkpoint[0], encoded(checkpoint[1], ""))

    def compare(trainer, batch):
        trainer.optimizer.zero_grad()
        trainer.objective.backward(batch)
        (ours, maps), session = Looking.got.pop(), trainer.session
        found, (vectors,) = flat_gradient(trainer), trainer.parts[0].parameters.values()
        tokens = [trainer.objective.text.tokenizer(row.prompt) for row in batch.rows["subject"]]
        read = [encode(session.clip, tokens[:1], [{"<my-dog>": {key: p[i] for key, p in vectors.items()}}])
                for i in range(len(attentions))]
        latents = batch.latents["subject"]
        pooled = None if read[0].pooled is None else sum(each.pooled for each in read) / len(read)
        inputs = session.model.model.extra_conds(cross_attn=read[0].cond, pooled_output=pooled, noise=latents.noisy,
                                                 device="cpu", width=64, height=64)
        inputs = {name: cond.process_cond(batch_size=len(latents.sigma), area=None).cond
                  for name, cond in inputs.items()}
        with handed(attentions, [each.cond for each in read]), projections(session.family.denoiser) as seen:
            theirs = session.model.model.apply_model(latents.noisy, latents.sigma, **inputs,
                                                     transformer_options=session.transformer_options(latents.sigma))
        torch.testing.assert_close(ours.double(), theirs.detach().double(), rtol=1e-6, atol=1e-6)
        sigma = latents.sigma.view(-1, 1, 1, 1)
        ((latents.noisy - theirs) / sigma - latents.noise).square().mean().backward()
        by_hand, largest = flat_gradient(trainer) - found, float(found.abs().max())
        torch.testing.assert_close(by_hand, found, rtol=1e-4, atol=1e-5 * largest)
        by_hand = [naive_attention(*kept[:2], heads).mean(1) for heads, kept in seen]
        for ours, theirs in zip(maps["mean"], by_hand, strict=True):
            torch.testing.assert_close(ours.double(), theirs.mean(1), rtol=1e-5, atol=1e-7)
        for ours, theirs in zip(maps["pixels"], (by_hand[0], by_hand[-1]), strict=True):
            torch.testing.assert_close(ours.double(), theirs[..., 5:6], rtol=1e-5, atol=1e-7)
        compared.append(found.view(len(vectors), len(attentions), -1).norm(dim=-1) if kind == "sd15" else found.norm())

    with in_place_of_a_step(compare):
        train(checkpoint, Settings(steps=1, batch_size=2), parts=PER_LAYER, terms=(Looking(),),
              subjects=(parted(checkpoint),))
    assert (compared[0] > 0).all()


def test_masked_words_are_told_beside_the_vectors_of_one_layer_that_is_drawn_for_the_step(sd15):
    """The loss's gradient is that of a plain word with the drawn layer's vectors, and nothing for the other layers; the
    layer is another one from step to step, and the same when a step is run again."""
    term, parts, drawn, compared = MaskedLanguageLoss(TEMPLATES, untrained(sd15[1]), 1.0, 0.4), [PER_LAYER], [], []

    def look(trainer, batch):
        for _ in range(2):
            trainer.optimizer.zero_grad()
            trainer.objective.backward(batch)
        gradient = flat_gradient(trainer)
        if parts[0] == PER_LAYER:
            by_layer = gradient.view(len(trainer.session.family.layers), -1)
            (layer,) = by_layer.norm(dim=1).nonzero().flatten().tolist()
            drawn.append(layer)
            gradient = by_layer[layer]
        compared.append(gradient)

    word = parted(sd15)
    with in_place_of_a_step(look):
        train(sd15, Settings(steps=8, batch_size=1), parts=PER_LAYER, terms=(term,), subjects=(word,))
        parts[0] = (EmbeddingPart(),)
        plain = replace(word, concept=word.concept.with_vectors(word.concept.vectors.at(drawn[0])))
        train(sd15, Settings(steps=1, batch_size=1), parts=parts[0], terms=(term,), subjects=(plain,))
    assert len(set(drawn)) > 2
    torch.testing.assert_close(compared[0], compared[-1], rtol=1e-4, atol=1e-7)


def picture_of(checkpoint, found) -> torch.Tensor:
    """(64, 64, 3) in 0…255: what stock nodes behind Apply Per-Layer Concept draw as a preview is drawn."""
    import comfy.sample

    model, clip = PersonalizeApplyPerLayerConcept.execute(*checkpoint[:2], (found,)).args
    noise, how = preview_noise(model, (64, 64), 0), UNet.preview
    with torch.inference_mode():
        latent = comfy.sample.sample(model, noise, how.steps, how.guidance, how.sampler, how.scheduler,
                                     encoded(clip, "a photo of <my-dog>"), encoded(clip, ""), torch.zeros_like(noise),
                                     disable_pbar=True, seed=0)
        return checkpoint[2].decode(latent)[0].float() * 255


def test_a_run_is_drawn_saved_returned_and_gone_on_with_by_layer(sd15, execute, monkeypatch):
    """A preview shows what Apply Per-Layer Concept draws with the concept of its step; the mean does not."""
    monkeypatch.setattr(UNet, "preview", replace(UNet.preview, steps=2))
    word = parted(sd15)
    job = make_job(sd15, "by-layer", steps=4, parts=(PerLayerPart(0.5),), save_every=2, preview_every=2,
                   subjects=(word,))
    outcome = run(job)
    last, early = outcome.concepts[0], run(replace(job, use_step=2)).concepts[0]
    assert "Apply Per-Layer Concept gives each layer its own" in outcome.report["message"]
    assert last.vectors.axis == early.vectors.axis == "layer"
    assert all(not torch.equal(last.vectors["clip_l"][0], other) for other in last.vectors["clip_l"][1:])
    folder = Path(folder_paths.get_output_directory()) / "personalize" / outcome.report["run"]
    shown = {entry["step"]: np.asarray(Image.open(folder / entry["image"]["filename"]).convert("RGB")).astype(float)
             for entry in outcome.report["previews"]}
    for step, found in ((0, word.concept), (2, early), (4, last)):
        drawn, mean = (picture_of(sd15, each).numpy() for each in (found, found.with_vectors(found.vectors.mean())))
        assert abs(shown[step] - drawn).max() <= 1 < abs(shown[step] - mean).max()
    assert torch.equal(run(replace(job, use_step=4)).concepts[0].vectors["clip_l"], last.vectors["clip_l"])
    stopped = make_job(sd15, "by-layer-longer", steps=2, parts=job.parts, subjects=job.subjects)
    run(stopped)
    longer = run(replace(stopped, settings=job.settings)).concepts[0]
    assert torch.equal(longer.vectors["clip_l"], last.vectors["clip_l"])


def test_the_next_stage_begins_with_the_words_of_each_layer(sd15):
    """Frozen beside what the next stage trains, or trained on; one vector for all would forget them."""
    word, losses = parted(sd15), []
    for parts in (PER_LAYER, (UNetPart(),)):
        trainer, _, _ = train(sd15, Settings(steps=1, batch_size=1), parts=parts, subjects=(word,))
        losses.append(trainer.history[0]["loss"])
    assert losses[0] == losses[1]
    with pytest.raises(ValueError, match="which one vector for all would forget; use Train Per-Layer"):
        train(sd15, Settings(steps=1), subjects=(word,))


def test_what_cannot_be_trained_is_said(sd15, z_image, execute):
    (part,) = PersonalizeTrainPerLayer.execute(5e-3).args[0]
    assert part == PerLayerPart(5e-3)
    with pytest.raises(ValueError, match="The model .* is no U-Net with text cross-attention"):
        train(z_image, Settings(steps=1), parts=(part,))
    taught = PersonalizeApplyPerLayerConcept.execute(*sd15[:2], (parted(sd15).concept,)).args[1]
    with pytest.raises(ValueError, match="taught <my-dog> by Apply Per-Layer Concept.* connect the CLIP from before"):
        run(make_job((sd15[0], taught, sd15[2]), "by-layer-taught", parts=(part,)))
    fewer = parted(sd15).concept.vectors
    fewer = WordVectors({key: v[:3] for key, v in fewer.items()}, "layer")
    word = replace(subject(), concept=subject().concept.with_vectors(fewer))
    for parts in ((part,), (UNetPart(),)):
        with pytest.raises(ValueError, match="vectors for 3 layers but this model has"):
            train(sd15, Settings(steps=1), parts=parts, subjects=(word,))
