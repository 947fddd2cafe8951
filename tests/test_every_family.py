"""Every family of models, each part and each loss: what is trained is pulled at, a stopped run goes on bit for bit, and
the model is as before. A new family is one word in KINDS."""
from __future__ import annotations

import math
from dataclasses import replace

import comfy.model_management
import pytest
import torch

from personalize.nodes.training.batch import Prior, Subject
from personalize.nodes.training.diffusion import DiffusionLoss
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.parts.weights import AdapterPart
from personalize.nodes.training.plan import Settings
from personalize.nodes.training.prior import PriorPreservation
from support.pictures import MadePicture
from support.trainings import (
    CORE,
    flat_gradient,
    gradients,
    in_place_of_a_step,
    move,
    sample,
    subject,
    train,
)

KINDS = ("sd15", "sd21", "sdxl", "lumina2", "z_image")  # noise, velocity, two encoders, flow beside Gemma and Qwen
EMBEDDING, ADAPTER = EmbeddingPart(), AdapterPart(rank=2, alpha=2.0, lr=1e-2)
PARTS = {"embedding": (EMBEDDING,), "adapter": (ADAPTER,), "both": (EMBEDDING, ADAPTER)}
LOSSES = (DiffusionLoss(), DiffusionLoss(noise_levels="min-SNR", name="min-SNR"), *CORE, PriorPreservation())
# Outputs of the text encoder do not depend on an adapter of the denoiser, and prior prompts hold no word.
INDEPENDENT = {"context embedding|LoRA", "prior preservation|embedding"}


@pytest.fixture(params=KINDS)
def loaded(request, _shared_checkpoints):
    shared = _shared_checkpoints(request.param)
    yield shared.loaded
    shared.check()


def with_prior() -> Subject:
    """Two pictures, and one of the class with a prompt of its own."""
    shown = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(8))
    return replace(subject(2), prior=Prior((MadePicture(shown, caption="a dog by the sea"),)))


@pytest.mark.parametrize("parts", ["embedding", "both"])
def test_every_loss_pulls_and_a_stopped_run_goes_on_exactly(loaded, parts):
    model, clip, _ = loaded
    before, halfway = sample(model, clip), []
    method = {"parts": PARTS[parts], "terms": LOSSES, "subjects": (with_prior(),)}
    settings = Settings(steps=2, batch_size=2)

    def keep(trainer, record):
        state = trainer.state()
        halfway.append(replace(state, tensors={name: t.clone() for name, t in state.tensors.items()},
                               history=list(state.history)))
        return True

    whole, _, end = train(loaded, settings, each_step=keep, **method)
    again, _, resumed = train(loaded, settings, resume=halfway[0], **method)
    pulled = {name for name, norm in whole.history[0]["norms"].items() if norm > 0}
    assert pulled == {f"{term.name}|{group.name}" for term in LOSSES for group in whole.groups} - INDEPENDENT
    assert all(math.isfinite(value) for record in whole.history for value in record["parts"].values())
    assert [record["loss"] for record in again.history] == [record["loss"] for record in whole.history]
    assert all(torch.equal(resumed.tensors[name], value) for name, value in end.tensors.items())
    assert torch.equal(sample(model, clip), before) and not comfy.model_management.in_training


@pytest.mark.parametrize("loaded, algorithm", [
    ("sd15", "LoRA"), ("sd21", "OFT"), ("sdxl", "LoKr"),
    *((kind, each) for kind in ("lumina2", "z_image") for each in ("LoRA", "LoKr", "OFT", "LoHa"))],
    indirect=["loaded"])
def test_an_adapter_alone_is_pulled_at(loaded, algorithm):
    part = AdapterPart(algorithm, 2, 2.0, attention_only=loaded.vae.latent_channels == 4)
    trainer, *_ = train(loaded, Settings(steps=1), parts=(part,))
    assert trainer.history[0]["norms"][f"diffusion|{algorithm}"] > 0


@pytest.mark.parametrize("terms", [LOSSES[:1], CORE], ids=["diffusion", "CoRe"])
@pytest.mark.parametrize("parts", ["embedding", "adapter"])
def test_the_gradient_is_the_slope(exact, parts, terms):
    """Of Z-Image in float64, whose text encoder ComfyUI computes in float32; the U-Nets': tests/test_interfaces.py."""
    found, (step, precision) = [], (1e-2, 5e-3) if parts == "embedding" else (1e-3, 1e-3)

    def measure(trainer, batch):
        def loss_at(shift):
            move(trainer, shift)
            value = sum(trainer._micro_batches(batch, measured=False)[0].values())
            move(trainer, -shift)
            return value

        trainer._micro_batches(batch, measured=False)
        gradient = flat_gradient(trainer).clone()
        steepest = gradient / gradient.norm()
        side = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(1))
        for direction in (steepest, steepest + side / side.norm()):
            slope = (loss_at(step * direction) - loss_at(-step * direction)) / (2 * step)
            found.append((slope, float(gradient @ direction)))

    with in_place_of_a_step(measure):
        train(exact("z_image"), Settings(steps=1, batch_size=2), parts=PARTS[parts], terms=terms)
    for slope, expected in found:
        assert expected > 0 and slope == pytest.approx(expected, rel=precision)


# ------------------------------------------------------------------------------------------------ lengths
def captioned(*captions: str) -> Subject:
    pixels = torch.rand(len(captions), 1, 64, 64, 3, generator=torch.Generator().manual_seed(8))
    return replace(subject(1), pictures=tuple(MadePicture(each, caption=caption)
                                              for each, caption in zip(pixels, captions)))


CAPTIONS = ("a <my-dog> on the sand", "a cat and a <my-dog> on the sand", "a <my-dog> in the snow")
LONG = ("a <my-dog>", "<my-dog> " + "red " * 100, "<my-dog> " + "red " * 200, "the <my-dog>")


@pytest.mark.parametrize("loaded, captions", [("z_image", CAPTIONS), ("lumina2", CAPTIONS), ("sd15", LONG)],
                         indirect=["loaded"])
def test_prompts_of_other_lengths_are_run_apart(loaded, captions):
    """As ComfyUI's samplers do. The gradient is that of the rows one by one."""
    runs: list[int] = []
    hook = loaded.model.model.diffusion_model.register_forward_pre_hook(
        lambda module, args, kwargs: runs.append(len(args[0])), with_kwargs=True)
    method = {"subjects": (captioned(*captions),), "parts": PARTS["both"], "terms": (DiffusionLoss(),)}
    if captions is CAPTIONS:
        draw = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(9))
        prior = Prior(tuple(MadePicture(draw, caption=text) for text in ("a dog", "dogs at the sea")), rows=2)
        method |= {"subjects": (replace(captioned(*captions), prior=prior),),
                   "terms": (DiffusionLoss(), PriorPreservation(), *CORE[1:])}
    together = gradients(loaded, method, batch_size=len(captions))
    assert max(runs) == 2
    del runs[:]
    apart = gradients(loaded, method, batch_size=len(captions), micro_batch=1)
    hook.remove()
    assert max(runs) == 1
    assert (together - apart).norm() < 1e-4 * apart.norm()  # rounding 4e-6; another word in one prompt 0.13 and more
