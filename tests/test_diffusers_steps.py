"""A step of Custom Diffusion and of DreamBooth beside diffusers' own: its U-Net, its attention processors and its
scheduler compute on the same weights, pictures, noise and levels what its example scripts do with prior preservation,
with the text encoder of transformers."""
from __future__ import annotations

import comfy.utils
import pytest
import torch
import torch.nn.functional as F

from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.parts.weights import KeyValuePart, UNetPart
from support.diffusers_models import PLACEHOLDER, own_names, text_encoder_like, unet_like
from support.scripts_steps import (
    CHANNELS,
    as_rounded,
    assert_the_same,
    initial_vector,
    numbers_of,
    our_step,
    tokens_with,
)
from tiny.models import WIDTH_L, text_config

pytest.importorskip("diffusers", reason="diffusers is not installed beside this ComfyUI")
TABLE = "embeddings.token_embedding.weight"


def encoded(text, clip, prompts):
    """(rows, T, C) float64: transformers' gradient, and the numbers that ComfyUI's encoder gives, as this random U-Net
    would make float32's rounding some hundred times larger."""
    tokens = [tokens_with(clip, prompt, PLACEHOLDER)["l"] for prompt in prompts]
    hidden = text(torch.tensor([[token for token, _ in chunk] for chunk, in tokens])).last_hidden_state
    vector = text.state_dict()[own_names(text)[TABLE]][PLACEHOLDER]
    with torch.no_grad():
        ours = torch.cat([clip.encode_from_tokens(tokens_with(clip, prompt, vector)) for prompt in prompts])
    torch.testing.assert_close(hidden.float(), ours, rtol=1e-5, atol=1e-5)
    return ours.double() + hidden.double() - hidden.double().detach()


def train_keys_and_values(unet):
    """Their processors of Custom Diffusion in the U-Net, as by --freeze_model=crossattn_kv; the parameters by the
    names of the weights that they stand for."""
    from diffusers.models.attention_processor import CustomDiffusionAttnProcessor2_0

    weights, processors, trained = unet.state_dict(), {}, {}
    for name in unet.attn_processors:
        layer = name.removesuffix(".processor")
        across = layer.endswith("attn2")
        width, context = weights[f"{layer}.to_k.weight"].shape
        processors[name] = CustomDiffusionAttnProcessor2_0(train_kv=across, train_q_out=False, hidden_size=width,
                                                           cross_attention_dim=context).to(unet.dtype)
        for kind in ("to_k", "to_v") if across else ():
            weight = processors[name].get_parameter(f"{kind}_custom_diffusion.weight")
            weight.data.copy_(weights[f"{layer}.{kind}.weight"])
            trained[f"{layer}.{kind}.weight"] = weight
    unet.requires_grad_(False).set_attn_processor(processors)
    return trained


def by_diffusers(checkpoint, rows, custom):
    """Loss and gradients of the weights by ComfyUI's names and, of Custom Diffusion, of "word"."""
    from diffusers import DDPMScheduler

    model, clip, _ = checkpoint
    schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    unet = unet_like(model, torch.float64)
    trained = train_keys_and_values(unet) if custom else dict(unet.named_parameters())
    text = text_encoder_like(clip, initial_vector(clip), **text_config(WIDTH_L, 2, "quick_gelu"))
    (own, prior), prompts = (each[0] for each in rows), [prompt for _, of_row in rows for prompt in of_row]
    clean, noise, sigma = (torch.cat([getattr(each, name) for each in (own, prior)])
                           for name in ("clean", "noise", "sigma"))
    timesteps = numbers_of(sigma, schedule.alphas_cumprod)
    noisy = schedule.add_noise(clean.double(), noise.double(), timesteps)
    noisy = torch.cat([as_rounded(part, latents) for part, latents in zip(noisy.chunk(2), (own, prior), strict=True)])
    predicted, predicted_prior = unet(noisy, timesteps, encoded(text, clip, prompts)).sample.chunk(2)
    target, target_prior = noise.double().chunk(2)
    if custom:
        mask = torch.ones_like(target[:, :1])
        loss = F.mse_loss(predicted, target, reduction="none")
        loss = ((loss * mask).sum([1, 2, 3]) / mask.sum([1, 2, 3])).mean()
    else:
        loss = F.mse_loss(predicted, target)
    loss = loss + F.mse_loss(predicted_prior, target_prior)
    loss.backward()
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    gradients = {names[name]: weight.grad for name, weight in trained.items()}
    if custom:
        gradients["word"] = text.get_parameter(own_names(text)[TABLE]).grad[PLACEHOLDER]
    return loss.item(), gradients


@pytest.mark.parametrize("method", ["Custom Diffusion", "DreamBooth"])
def test_a_step_is_that_of_diffusers(exact, method):
    checkpoint, custom = exact("sd15"), method == "Custom Diffusion"
    parts = (EmbeddingPart(), KeyValuePart()) if custom else (UNetPart(),)
    ours = our_step(checkpoint, parts, weight=float(CHANNELS) if custom else 1.0)
    assert_the_same(ours, *by_diffusers(checkpoint, ours["rows"], custom))
