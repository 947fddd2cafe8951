"""Conditionings and runs of ComfyUI's samplers on small latents."""
from __future__ import annotations

import torch


def encoded(clip, text: str, **options):
    """CONDITIONING of a prompt; options are added to it."""
    with torch.inference_mode():
        return clip.encode_from_tokens_scheduled(clip.tokenize(text), add_dict=options)


def noise_for(latent: torch.Tensor, seed: int = 3) -> torch.Tensor:
    """Noise of the sampler for this seed."""
    return torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))


def sample(model, positive, negative, batch: int = 1, steps: int = 2, cfg: float = 5.0, sampler: str = "euler",
           size: tuple[int, int] = (16, 16), latent: torch.Tensor | None = None, **more) -> torch.Tensor:
    """What KSampler gives: (batch, 4, *size)."""
    import comfy.sample

    latent = torch.zeros(batch, 4, *size) if latent is None else latent
    with torch.inference_mode():
        return comfy.sample.sample(model, noise_for(latent), steps, cfg, sampler, "normal", positive, negative, latent,
                                   disable_pbar=True, seed=3, **more)


def guided(guider, steps: int = 3, seed: int = 3) -> torch.Tensor:
    """What a guider's node, SamplerCustomAdvanced and euler give: (1, 4, 16, 16)."""
    import comfy.samplers

    latent = torch.zeros(1, 4, 16, 16)
    sigmas = comfy.samplers.calculate_sigmas(guider.model_patcher.get_model_object("model_sampling"), "normal", steps)
    with torch.inference_mode():
        return guider.sample(noise_for(latent, seed), latent, comfy.samplers.sampler_object("euler"), sigmas,
                             disable_pbar=True, seed=seed)


def difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference in parts of the expected values' spread."""
    return float((got - expected).abs().max() / expected.std())
