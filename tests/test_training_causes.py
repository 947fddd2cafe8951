"""When a training cannot go on, the sentence names the true cause, and remedies that are still open."""
from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, replace

import comfy.model_management
import comfy_extras.nodes_model_advanced as advanced
import pytest
import torch

from personalize.nodes.families.unet import UNet
from personalize.nodes.papers.core.nodes import PersonalizeCoReTestTime
from personalize.nodes.text.concept import Concept, initial_vectors
from personalize.nodes.text.vectors import WordVectors
from personalize.nodes.training.diffusion import DiffusionLoss
from personalize.nodes.training.failures import OutOfMemory, TrainingDiverged
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.parts.weights import AdapterPart, UNetPart
from personalize.nodes.training.plan import Settings
from support.trainings import FAILED, Failing, learned, make_job, run, subject, train

pytestmark = pytest.mark.usefixtures("execute")
NOT_SETTINGS = r"^(?!.*learning rate)(?!.*micro_batch)"
MEMORY = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")


class Vae:
    """The checkpoint's VAE, whose call number `bad` of a method gives no numbers, or raises `error`."""

    def __init__(self, vae, method, bad=1, error=None):
        self.vae, self.method, self.bad, self.error, self.calls = vae, method, bad, error, 0

    def __getattr__(self, name):
        return getattr(self.vae, name)

    def _spoilt(self, name, *args):
        result, self.calls = getattr(self.vae, name)(*args), self.calls + (name == self.method)
        if name == self.method and self.calls == self.bad:
            if self.error:
                raise self.error
            return result * float("nan")
        return result

    def encode(self, pixels):
        return self._spoilt("encode", pixels)

    def decode(self, samples):
        return self._spoilt("decode", samples)


@pytest.fixture(autouse=True)
def none_failed():
    FAILED.clear()


@pytest.mark.parametrize("bad", [1, 3])
def test_a_picture_that_the_vae_makes_no_numbers_of_is_named(sd15, bad):
    sentence = (
        NOT_SETTINGS + f"The VAE gives values that are not numbers for picture {bad}; .*VAE of the same checkpoint"
    )
    with pytest.raises(ValueError, match=sentence):
        run(make_job(sd15, f"cause-vae-{bad}", vae=Vae(sd15.vae, "encode", bad)))
    half = Vae(sd15.vae, "encode", bad)
    half.vae_dtype = torch.float16
    with pytest.raises(ValueError, match=f"picture {bad}; in half precision some VAEs overflow: start ComfyUI with "
                                         "--fp32"):
        run(make_job(sd15, "cause-vae-half", vae=half))


def test_pictures_that_do_not_fit_into_the_vae(sd15):
    with pytest.raises(OutOfMemory, match="Encoding the pictures with the VAE does not fit into memory; set size "
                                          "lower"):
        run(make_job(sd15, "cause-vae-memory", vae=Vae(sd15.vae, "encode", error=MEMORY)))


@pytest.mark.parametrize("missing", [None, "empty"])
def test_a_missing_vae(sd15, missing):
    vae = copy.copy(sd15.vae) if missing else None
    if missing:
        vae.first_stage_model = None
    with pytest.raises(ValueError, match="The VAE is missing: the checkpoint holds none; load one with Load VAE"):
        run(make_job(sd15, "cause-no-vae", vae=vae))


@pytest.mark.parametrize("kind", ["edm", "edm_playground_v2.5", "v_prediction"])
def test_noise_levels_of_another_kind(sd15, kind):
    model = advanced.ModelSamplingContinuousEDM().patch(sd15.model, kind, 120.0, 0.002)[0]
    with pytest.raises(ValueError, match=NOT_SETTINGS + r"The noise levels of this model \(.*EDM.*\) are not those of "
                                                        "numbered timesteps"):
        run(make_job(sd15, f"cause-{kind}", model=model))


@pytest.mark.parametrize("kind, zero_terminal", [("eps", False), ("v_prediction", False), ("v_prediction", True)])
def test_noise_levels_that_can_be_trained_on(sd15, kind, zero_terminal):
    model = advanced.ModelSamplingDiscrete().patch(sd15.model, kind, zero_terminal)[0]
    assert run(make_job(sd15, f"fine-{kind}-{zero_terminal}", model=model, steps=1)).report["history"]


def test_vectors_that_are_no_numbers(sd15, nan_in):
    bad = Concept("<my-dog>", "dog", "dog").with_vectors({"clip_l": torch.full((1, 32), float("nan"))})
    with pytest.raises(ValueError, match="Concept <my-dog> has vectors that are not numbers for clip_l; load an "
                                         "earlier"):
        run(make_job(sd15, "cause-vectors", subjects=(replace(subject(), concept=bad),)))
    nan_in(sd15.clip.cond_stage_model, "clip_l.transformer.text_model.embeddings.token_embedding.weight")
    with pytest.raises(ValueError, match="The text encoder clip_l holds no numbers for 'dog'; its file is damaged"):
        initial_vectors(Concept("<my-dog>", "dog", "dog"), sd15.clip)


def test_a_text_encoder_that_gives_no_numbers(sd15, nan_in):
    nan_in(sd15.clip.cond_stage_model, "clip_l.transformer.text_model.encoder.layers.1.mlp.fc2.weight")
    with pytest.raises(TrainingDiverged, match=NOT_SETTINGS + "Step 1: the text encoder gives values that are not "
                                               "numbers for 'a photo of a dog', also without what is learned"):
        run(make_job(sd15, "cause-text"))


@pytest.mark.parametrize("precision, remedy", [("fp32", "in fp32; load another file of it, or take"),
                                               ("bf16", "in bf16; load another file of it, or set precision to fp32")])
def test_a_model_that_gives_no_numbers(sd15, nan_in, precision, remedy):
    nan_in(sd15.model.model, "diffusion_model.out.2.weight")
    for parts in ((EmbeddingPart(),), (AdapterPart(),)):
        with pytest.raises(TrainingDiverged, match=NOT_SETTINGS + "Step 1: the model .* gives values that are not "
                                                   f"numbers by itself, without what is learned, {remedy}"):
            run(make_job(sd15, f"cause-model-{precision}", parts=parts, precision=precision))


@dataclass(frozen=True)
class Odd(DiffusionLoss):
    """No number in step `step`."""

    step: int = 1

    def __call__(self, got, batch, model):
        return super().__call__(got, batch, model) * (float("nan") if batch.step == self.step else 1)


def test_a_loss_that_is_no_number_by_itself(sd15):
    terms = (DiffusionLoss(), Odd(name="odd"))
    with pytest.raises(TrainingDiverged, match=NOT_SETTINGS + "Step 1: the loss odd is not a number although nothing "
                                               "is learned yet; lower its weight.$"):
        train(sd15, Settings(steps=2), terms=terms)
    with pytest.raises(TrainingDiverged, match=NOT_SETTINGS + "Step 2: the loss odd is not a number although nothing"):
        train(sd15, Settings(steps=2), parts=(EmbeddingPart(0.0),), terms=(Odd(name="odd", step=2),))


def test_a_learning_rate_that_is_too_high(sd15):
    """In fp32 precision is no remedy."""
    parts = (UNetPart(lr=1e30),)
    with pytest.raises(TrainingDiverged, match=r"Step \d+: the loss diffusion is not a number any more; lower the "
                                               r"learning "
                                               r"rate\. "):
        run(make_job(sd15, "cause-rate", parts=(EmbeddingPart(), *parts), settings=Settings(steps=9, optimizer="SGD")))
    with pytest.raises(TrainingDiverged, match="lower the learning rate, or set precision to fp32"):
        run(make_job(sd15, "cause-rate-bf16", parts=(EmbeddingPart(), *parts), precision="bf16",
                     settings=Settings(steps=9, optimizer="SGD")))


@pytest.mark.parametrize("settings, remedies", [
    (Settings(steps=2, batch_size=1), ("with 1 row at once; set gradient_checkpointing to on, or set size of Subject "
                                      "lower")),
    (Settings(steps=2, batch_size=3, micro_batch=1, checkpointing=True), ("with 1 row at once; set size of Subject "
                                                                         "lower")),
    (Settings(steps=2, batch_size=3, micro_batch=3), "with 1 row at once; set gradient_checkpointing to on, or"),
    (Settings(steps=2, batch_size=9), "with 4 rows at once; set micro_batch to 1, or set gradient_checkpointing"),
    (Settings(steps=2, batch_size=9, checkpointing=True), "with 4 rows at once; set micro_batch to 1, or set size")])
def test_a_step_that_does_not_fit(sd15, settings, remedies):
    with pytest.raises(OutOfMemory, match=f"Step 1 does not fit into memory {remedies}"):
        train(sd15, settings, terms=(Failing(error="memory", step=1),))


@dataclass(frozen=True)
class Large(EmbeddingPart):
    def attach(self, run):
        raise MEMORY


@pytest.mark.parametrize("parts, remedy", [
    ((Large(),), "close what else uses the memory"), ((Large(), AdapterPart()), ("take parts out of the chain at "
                                                                                "trainable")),
    ((Large(), UNetPart()), "connect Train Adapter in place of Train U-Net")])
def test_parts_that_do_not_fit(sd15, parts, remedy):
    with pytest.raises(OutOfMemory, match=f"The models and the parts to train do not fit into memory; {remedy}"):
        run(make_job(sd15, "cause-parts", parts=parts))


@pytest.mark.parametrize("method, error, why", [
    ("decode", MEMORY, "drawing it does not fit into memory beside the training; set preview_every to 0"),
    ("decode", RuntimeError("a broken VAE."), "a broken VAE"), ("decode", KeyError(), "KeyError"),
    ("decode", None, "the VAE gives values that are not numbers for it"),
    ("sample", MEMORY, "does not fit"), ("sample", RuntimeError("a broken sampler"), "a broken sampler"),
    ("sample", None, "the model gives values that are not numbers in it")])
def test_a_preview_that_fails_is_left_out(sd15, monkeypatch, caplog, method, error, why):
    """The first is, the others are drawn; what is learned is the same, bit for bit."""
    name = f"cause-preview-{method}-{type(error).__name__}"
    monkeypatch.setattr(UNet, "preview", replace(UNet.preview, steps=1))
    vae = Vae(sd15.vae, method, error=error)
    if method == "sample":
        calls, sampled = [], comfy.sample.sample

        def sample(*args, **kwargs):
            calls.append(1)
            if len(calls) == 1 and error:
                raise error
            return sampled(*args, **kwargs) * (float("nan") if len(calls) == 1 else 1)

        monkeypatch.setattr(comfy.sample, "sample", sample)
    with caplog.at_level(logging.WARNING, "personalize"):
        report = run(make_job(sd15, name, vae=vae, steps=2, preview_every=1))
    assert [p["step"] for p in report.report["previews"]] == [1, 2] and len(report.report["history"]) == 2
    said = [each.getMessage() for each in caplog.records if "preview" in each.getMessage()]
    assert len(said) == 1 and said[0].startswith("The preview at step 0 is left out: ") and why in said[0]
    assert said[0].endswith(". Training goes on.")
    assert torch.equal(learned(report), learned(run(make_job(sd15, "cause-no-preview", steps=2))))


def test_an_interruption_while_a_preview_is_drawn_is_one(sd15, monkeypatch):
    monkeypatch.setattr(UNet, "preview", replace(UNet.preview, steps=1))
    error = comfy.model_management.InterruptProcessingException()
    with pytest.raises(type(error)):
        run(make_job(sd15, "cause-interrupted", vae=Vae(sd15.vae, "decode", error=error), preview_every=1))
    assert not comfy.model_management.in_training


def refine(checkpoint, **inputs):
    concept = Concept("<my-dog>", "dog", "dog", vectors=WordVectors({"clip_l": torch.zeros(1, 32)}))
    defaults = dict(prompt="a {} on the beach", steps=1, learning_rate=1e-3, formulas="as released", batch_size=1,
                    size=64,
                    seed=0)
    with torch.inference_mode():
        return PersonalizeCoReTestTime.execute(checkpoint.model, checkpoint.clip, (concept,), **{**defaults, **inputs})


def test_test_time_optimization_names_its_own_remedies(sd15, monkeypatch):
    with pytest.raises(ValueError, match="latent holds values that are not numbers; look at the sampler or VAE"):
        refine(sd15, latent={"samples": torch.full((1, 4, 8, 8), float("inf"))})
    with pytest.raises(ValueError, match="The VAE gives values that are not numbers for picture 1"):
        refine(sd15, subject=(subject(),), vae=Vae(sd15.vae, "encode"))
    with monkeypatch.context() as patch, pytest.raises(OutOfMemory) as error:
        patch.setattr(comfy.model_management, "soft_empty_cache", lambda *_: None)
        patch.setattr("personalize.nodes.papers.core.terms.context_embedding_loss", raising)
        refine(sd15)
    assert str(error.value) == ("Step 1 does not fit into memory with 1 row at once; set batch_size or size lower, or "
                                "connect smaller pictures.")


def raising(*args, **kwargs):
    raise MEMORY
