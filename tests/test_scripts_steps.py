"""A step of Custom Diffusion and of DreamBooth: loss and gradients are those of diffusers' scripts, whose formula is
written out here, with the U-Net called directly on noise levels computed from their betas.

The subject's part of Custom Diffusion is a sum over four channels, divided by a sum over a mask of one: four times the
mean. Keys and values of the start token are constants to it."""
from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.func import functional_call

from personalize.nodes.training.batch import Prior
from personalize.nodes.training.diffusion import DiffusionLoss
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.parts.weights import KeyValuePart, UNetPart
from personalize.nodes.training.plan import Settings
from personalize.nodes.training.prior import PriorPreservation
from personalize.nodes.training.session import training_session
from support.pictures import MadePicture
from support.trainings import in_place_of_a_step, subject, train

CHANNELS = 4
CLASS_PROMPT = "a photo of a dog"
SUBJECT = replace(subject(), prior=Prior(tuple(
    MadePicture(torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(i)), caption=CLASS_PROMPT)
    for i in range(2)), rows=2, weight=1.0))


def our_step(checkpoint, parts, weight):
    """The step's latents, prompts, loss, and gradients by their names in a LoRA file; "word" for the word's."""
    found = {}

    def collect(trainer, batch):
        values, _ = trainer._micro_batches(batch, measured=False)
        found["rows"] = [(batch.latents[stream], [row.prompt for row in batch.rows[stream]])
                         for stream in ("subject", "prior")]
        found["loss"] = sum(values.values())
        found["gradients"] = {name: p.grad.clone() for name, p in trainer.parts[-1]._named()}
        if len(parts) > 1:
            word, = (p for group in trainer.parts[0].groups for p in group.params)
            found["gradients"]["word"] = word.grad.clone()

    with in_place_of_a_step(collect):
        train(checkpoint, Settings(steps=1, batch_size=2), subjects=(SUBJECT,), parts=parts,
              terms=(DiffusionLoss(weight=weight), PriorPreservation()))
    return found


def timesteps_of(sigma):
    """Numbers of noise levels among the thousand of the scripts' schedule, and ᾱ of each."""
    betas = [(math.sqrt(0.00085) + (math.sqrt(0.012) - math.sqrt(0.00085)) * i / 999) ** 2 for i in range(1000)]
    kept, product = [], 1.0
    for beta in betas:
        product *= 1 - beta
        kept.append(product)
    levels = torch.tensor([math.sqrt((1 - each) / each) for each in kept], dtype=torch.float64)
    numbers = (levels[None] - sigma[:, None].double()).abs().argmin(1)
    assert torch.allclose(levels[numbers], sigma.double(), rtol=1e-5)
    return numbers, torch.tensor(kept, dtype=torch.float64)[numbers]


def as_in_the_script(checkpoint, rows, names, custom):
    """Loss and gradients for the weights of these names and, of Custom Diffusion, for the word."""
    model, clip, _ = checkpoint
    with training_session(model, clip) as session:
        session.load()
        unet = session.model.model.diffusion_model
        leaves = {name: p.detach().clone().requires_grad_() for name, p in unet.named_parameters() if name in names}
        word, = (number for number, _ in session.clip.tokenize("cat")["l"][0][1:2])
        vector = session.clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight[word].detach().clone()
        vector.requires_grad_(custom)

        def encoded(prompt):
            chunks = session.clip.tokenize(prompt.replace("<my-dog>", "cat"))["l"]
            inserted = [[(vector if token == word and "<my-dog>" in prompt else token, weight)
                         for token, weight in chunk] for chunk in chunks]
            return session.clip.encode_from_tokens({"l": inserted})

        def errors(latents, prompts):
            numbers, kept = timesteps_of(latents.sigma)
            kept = kept.view(-1, 1, 1, 1)
            noise = latents.noise.double()
            noisy = kept.sqrt() * latents.clean.double() + (1 - kept).sqrt() * noise
            context = torch.cat([encoded(prompt) for prompt in prompts]).double()
            predicted = _run(unet, leaves, noisy, numbers, context, custom)
            return (predicted - noise) ** 2

        own, prior = (errors(*each) for each in rows)
        mask = torch.ones_like(own[:, :1])
        loss = (own.sum((1, 2, 3)) / mask.sum((1, 2, 3))).mean() if custom else own.mean()
        loss = loss + prior.mean()
        gradients = torch.autograd.grad(loss, [*leaves.values(), *([vector] if custom else [])])
        return loss.item(), dict(zip([*leaves, "word"], gradients))


def _run(unet, leaves, noisy, numbers, context, start_is_constant):
    """The prediction; keys and values of the first token as numbers from a run of their own."""
    def run():
        return functional_call(unet, leaves, (noisy, numbers), {"context": context})

    if not start_is_constant:
        return run()
    layers = [module for name, module in unet.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))]
    seen = []
    hooks = [layer.register_forward_hook(lambda _, inputs, output: seen.append(output[:, 0].tolist()))
             for layer in layers]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    constants, first = iter(seen), torch.arange(context.shape[1]).view(1, -1, 1) == 0

    def put(_, inputs, output):
        return torch.where(first, torch.tensor(next(constants), dtype=output.dtype)[:, None], output)

    hooks = [layer.register_forward_hook(put) for layer in layers]
    try:
        return run()
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("method", ["Custom Diffusion", "DreamBooth"])
def test_loss_and_gradients_are_those_of_the_script(exact, method):
    checkpoint, custom = exact("sd15"), method == "Custom Diffusion"
    parts = (EmbeddingPart(), KeyValuePart()) if custom else (UNetPart(),)
    ours = our_step(checkpoint, parts, weight=float(CHANNELS) if custom else 1.0)
    ending = {".diff": ".weight", ".diff_b": ".bias"}
    names = {name: name.removeprefix("diffusion_model.").replace(kind, ending[kind])
             for name in ours["gradients"] if name != "word" for kind in [name[name.rindex("."):]]}
    loss, gradients = as_in_the_script(checkpoint, ours["rows"], set(names.values()), custom)
    assert ours["loss"] == pytest.approx(loss, rel=1e-5)
    assert set(names.values()) | ({"word"} if custom else set()) == set(gradients)
    differences = {name: gradient.double() - gradients[names.get(name, "word")].reshape(gradient.shape).double()
                   for name, gradient in ours["gradients"].items()}
    if custom:  # through the text encoder, which computes in float32
        assert differences.pop("word").norm() <= 1e-3 * gradients.pop("word").norm()
    length = _length(gradients.values())
    assert _length(differences.values()) <= 1e-5 * length
    for name, difference in differences.items():
        assert difference.norm() <= 1e-4 * gradients[names[name]].norm() + 1e-9 * length, name


def _length(tensors) -> float:
    return math.sqrt(sum(tensor.double().square().sum().item() for tensor in tensors))
