"""A step of Custom Diffusion and of DreamBooth: loss and gradients are those of diffusers' scripts, whose formula is
written out here, with the U-Net called directly on noise levels computed from their betas.

The subject's part of Custom Diffusion is a sum over four channels, divided by a sum over a mask of one: four times the
mean. Keys and values of the start token are constants to it."""
from __future__ import annotations

import math

import pytest
import torch
from torch.func import functional_call

from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.parts.weights import KeyValuePart, UNetPart
from personalize.nodes.training.session import training_session
from support.scripts_steps import (
    CHANNELS,
    as_rounded,
    assert_the_same,
    initial_vector,
    numbers_of,
    our_step,
    tokens_with,
)


def kept_of_the_scripts():
    """ᾱ of the thousand noise levels of their schedule."""
    betas = [(math.sqrt(0.00085) + (math.sqrt(0.012) - math.sqrt(0.00085)) * i / 999) ** 2 for i in range(1000)]
    return (1 - torch.tensor(betas, dtype=torch.float64)).cumprod(0)


def as_in_the_script(checkpoint, rows, names, custom):
    """Loss and gradients for the weights of these names and, of Custom Diffusion, for the word."""
    model, clip, _ = checkpoint
    levels = kept_of_the_scripts()
    with training_session(model, clip) as session:
        session.load()
        unet = session.model.model.diffusion_model
        leaves = {name: p.detach().clone().requires_grad_() for name, p in unet.named_parameters() if name in names}
        vector = initial_vector(session.clip).requires_grad_(custom)

        def errors(latents, prompts):
            numbers = numbers_of(latents.sigma, levels)
            kept = levels[numbers].view(-1, 1, 1, 1)
            noise = latents.noise.double()
            noisy = as_rounded(kept.sqrt() * latents.clean.double() + (1 - kept).sqrt() * noise, latents)
            context = torch.cat([session.clip.encode_from_tokens(tokens_with(session.clip, prompt, vector[0]))
                                 for prompt in prompts]).double()
            predicted = _run(unet, leaves, noisy, numbers, context, custom)
            return (predicted - noise) ** 2

        own, prior = (errors(*each) for each in rows)
        mask = torch.ones_like(own[:, :1])
        loss = (own.sum((1, 2, 3)) / mask.sum((1, 2, 3))).mean() if custom else own.mean()
        loss = loss + prior.mean()
        named = {**leaves, **({"word": vector} if custom else {})}
        return loss.item(), dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


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
    assert_the_same(ours, *as_in_the_script(checkpoint, ours["rows"], ours["gradients"].keys(), custom))
