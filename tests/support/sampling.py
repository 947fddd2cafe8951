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


def difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference in parts of the expected values' spread."""
    return float((got - expected).abs().max() / expected.std())
