"""One training step of ours, to be compared with that of diffusers' example scripts."""
from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from personalize.nodes.training.batch import Prior
from personalize.nodes.training.diffusion import DiffusionLoss
from personalize.nodes.training.plan import Settings
from personalize.nodes.training.prior import PriorPreservation
from support.pictures import MadePicture
from support.trainings import in_place_of_a_step, subject, train

CHANNELS = 4
WORD, INITIAL = "<my-dog>", "cat"
CLASS_PROMPT = "a photo of a dog"
SUBJECT = replace(subject(placeholder=WORD), prior=Prior(tuple(
    MadePicture(torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(i)), caption=CLASS_PROMPT)
    for i in range(2)), rows=2, weight=1.0))
KINDS = {".diff": ".weight", ".diff_b": ".bias"}


def our_step(checkpoint, parts, weight=1.0):
    """{"rows": [(latents, prompts) of the subject's rows and of the prior's], "loss", "gradients": by the name of the
    U-Net's weight, and by "word"}. weight: of the subject's part of the loss."""
    found = {}

    def collect(trainer, batch):
        values, _ = trainer._micro_batches(batch, measured=False)
        found["rows"] = [(batch.latents[stream], [row.prompt for row in batch.rows[stream]])
                         for stream in ("subject", "prior")]
        found["loss"] = sum(values.values())
        found["gradients"] = {_weight_of(name): p.grad.clone() for name, p in trainer.parts[-1]._named()}
        if len(parts) > 1:
            word, = (p for group in trainer.parts[0].groups for p in group.params)
            found["gradients"]["word"] = word.grad.clone()

    with in_place_of_a_step(collect):
        train(checkpoint, Settings(steps=1, batch_size=2), subjects=(SUBJECT,), parts=parts,
              terms=(DiffusionLoss(weight=weight), PriorPreservation()))
    return found


def initial_vector(clip):
    """(1, d) float32, where the word starts."""
    (_, (token, _), *_), = clip.tokenize(INITIAL)["l"]
    return clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight[token].detach().float()[None]


def tokens_with(clip, prompt, stand_in):
    """The prompt's tokens for ComfyUI, with `stand_in` in the word's place."""
    (_, (word, _), *_), = clip.tokenize(INITIAL)["l"]
    return {"l": [[(stand_in if token == word and WORD in prompt else token, weight) for token, weight in chunk]
                  for chunk in clip.tokenize(prompt.replace(WORD, INITIAL))["l"]]}


def numbers_of(sigma, kept):
    """Which of the schedule's noise levels these are. kept: ᾱ of each level."""
    levels = ((1 - kept.double()) / kept.double()).sqrt()
    numbers = (levels[None] - sigma[:, None].double()).abs().argmin(1)
    torch.testing.assert_close(levels[numbers], sigma.double(), rtol=1e-5, atol=0)
    return numbers


def as_rounded(noisy, latents):
    """The U-Net's input as the loop computes it in float32: this random U-Net would make the rounding some hundred
    times larger. Raises AssertionError if they differ by more than that."""
    ours = (latents.noisy / (1 + latents.sigma.view(-1, 1, 1, 1) ** 2).sqrt()).double()
    assert (ours - noisy).norm() <= 1e-5 * noisy.norm()
    return ours


def assert_the_same(ours, loss, gradients):
    """Raises AssertionError unless loss and gradients are those of `our_step` but for float32's rounding."""
    assert ours["loss"] == pytest.approx(loss, rel=1e-6)
    assert ours["gradients"].keys() == gradients.keys()
    theirs = {name: gradient.reshape(ours["gradients"][name].shape).double() for name, gradient in gradients.items()}
    differences = {name: ours["gradients"][name].double() - gradient for name, gradient in theirs.items()}
    length = _length(theirs)
    assert _length(differences) <= 1e-6 * length
    for name, difference in differences.items():
        assert difference.norm() <= 1e-5 * theirs[name].norm() + 1e-9 * length, name


def _weight_of(name):
    kind = name[name.rindex("."):]
    return name.removeprefix("diffusion_model.").removesuffix(kind) + KINDS[kind]


def _length(tensors):
    return math.sqrt(sum(tensor.square().sum().item() for tensor in tensors.values()))
