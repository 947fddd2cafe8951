"""DreamBooth's step, as diffusers' train_dreambooth.py computes it, transcribed and run on the same weights, pictures
and noise; the text encoder is that of transformers, as there."""
from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from personalize.nodes.text.encode import encode
from personalize.nodes.training.batch import Prior
from personalize.nodes.training.diffusion import DiffusionLoss
from personalize.nodes.training.parts.text_encoder import TextEncoderPart
from personalize.nodes.training.parts.weights import UNetPart
from personalize.nodes.training.plan import Settings
from personalize.nodes.training.prior import PriorPreservation
from support.diffusers_models import PLACEHOLDER, own_names, text_encoder_like
from support.pictures import MadePicture
from support.trainings import in_place_of_a_step, subject, train
from tiny.models import WIDTH_L, text_config


def by_the_script(trainer, batch, weight):
    """Loss and gradients of `train_dreambooth.py` with --with_prior_preservation and --train_text_encoder."""
    session = trainer.session
    text = text_encoder_like(session.clip, trainer.frozen["<my-dog>"]["clip_l"],
                             **text_config(WIDTH_L, 2, "quick_gelu"))
    own = own_names(text)
    unet = copy.deepcopy(session.model.model.diffusion_model).requires_grad_(True)
    for module in unet.modules():
        if hasattr(module, "weight_function"):
            module.weight_function, module.bias_function = [], []
    latents = [batch.latents[stream] for stream in ("subject", "prior")]
    model_input, noise, sigma = (torch.cat([getattr(each, name) for each in latents])
                                 for name in ("clean", "noise", "sigma"))
    alphas_cumprod = 1 / (1 + session.model.model.model_sampling.sigmas.double() ** 2)
    timesteps = session.model.model.model_sampling.timestep(sigma)
    alpha = alphas_cumprod[timesteps][:, None, None, None]
    noisy_model_input = alpha.sqrt() * model_input + (1 - alpha).sqrt() * noise
    noisy = torch.cat([each.noisy for each in latents]) / (sigma[:, None, None, None] ** 2 + 1) ** 0.5
    torch.testing.assert_close(noisy_model_input.float(), noisy, rtol=1e-5, atol=1e-5)
    rows = [*batch.rows["subject"], *batch.rows["prior"]]
    input_ids = [ids_of(trainer, row.prompt) for row in rows]
    encoder_hidden_states = text(torch.tensor(input_ids)).last_hidden_state
    ours = encode(session.clip, [trainer.objective.text.tokenizer(row.prompt) for row in rows],
                  [trainer.frozen] * len(rows)).cond.detach()
    torch.testing.assert_close(encoder_hidden_states, ours, rtol=1e-5, atol=1e-5)
    # float32's rounding of what goes in, which this random U-Net would make 50 times larger, is left out
    noisy_model_input = noisy
    encoder_hidden_states = ours + encoder_hidden_states - encoder_hidden_states.detach()
    dtype = unet.input_blocks[0][0].weight.dtype
    model_pred = unet(noisy_model_input.to(dtype), timesteps.float(), encoder_hidden_states.to(dtype),
                      transformer_options=session.transformer_options(sigma))
    count = len(batch.rows["subject"])
    (model_pred, model_pred_prior), (target, target_prior) = (each.split([count, len(rows) - count])
                                                              for each in (model_pred, noise.to(dtype)))
    loss = torch.nn.functional.mse_loss(model_pred, target, reduction="mean")
    loss = loss + weight * torch.nn.functional.mse_loss(model_pred_prior, target_prior, reduction="mean")
    loss.backward()
    text_gradients = {name: text.get_parameter(own[name]).grad for name in own if "position_ids" not in name}
    return float(loss.detach()), {name: p.grad for name, p in unet.named_parameters()}, text_gradients


def ids_of(trainer, prompt):
    """The tokens of a prompt of one chunk; the word's is PLACEHOLDER."""
    (chunk,) = dict(trainer.objective.text.tokenizer(prompt).chunks)["l"]
    return [token if isinstance(token, int) else PLACEHOLDER for token, _ in chunk]


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_a_step_is_that_of_diffusers(exact, weight):
    found = {}

    def look(trainer, batch):
        values, _ = trainer._micro_batches(batch, measured=False)
        unet, text = trainer.parts
        found["loss"], found["unet"], found["text"] = by_the_script(trainer, batch, weight)
        assert sum(values.values()) == pytest.approx(found["loss"], rel=1e-5)
        for part, prefix, gradients in ((unet, "diffusion_model.", found["unet"]),
                                        (text, "clip_l.transformer.text_model.", found["text"])):
            pairs = [(change.diff.grad.double(), gradients[key.removeprefix(prefix)].double())
                     for key, (_, change) in part.changes.items() if "text_projection" not in key]
            ours, theirs = (torch.cat([each.flatten() for each in side]) for side in zip(*pairs, strict=True))
            found[prefix] = float((ours - theirs).norm() / theirs.norm())

    prior = Prior((MadePicture(torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(2)),
                               caption="a photo of a dog"),), 1, weight)
    with in_place_of_a_step(look):
        train(exact("sd15"), Settings(steps=1, batch_size=1, seed=1), parts=(UNetPart(), TextEncoderPart()),
              subjects=(replace(subject(), prior=prior),), terms=(DiffusionLoss(), PriorPreservation()))
    assert found["diffusion_model."] < 1e-5 and found["clip_l.transformer.text_model."] < 1e-5
