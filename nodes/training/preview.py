"""Pictures drawn while training, with the vectors and weights of the moment."""
from __future__ import annotations

import comfy.sample
import torch
from torch import Tensor

from ..families.latents import latent_space
from ..text.apply import clip_with_vectors
from ..text.tokens import prompt_tokens
from ..text.vectors import Vectors
from .seeds import generator
from .session import Session


@torch.no_grad()
def draw_preview(session: Session, vae, prompt: str, vectors: Vectors, size: tuple[int, int], seed: int) -> Tensor:
    """One picture (H, W, 3) in 0…1 of `prompt`, always from the same noise, drawn as suits the model's family.

    size: height and width in pixels. Pushes the session's models out of memory: load them again afterwards.
    Raises ValueError if the picture is made of no numbers.
    """
    rows = {name: {key: v.detach() for key, v in by_encoder.items()} for name, by_encoder in vectors.items()}
    clip = clip_with_vectors(session.clip, rows)
    positive = clip.encode_from_tokens_scheduled(clip.tokenize(prompt),
                                                 add_dict=prompt_tokens(clip, prompt).layout.options())
    negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    empty, how = latent_space(session.model).empty(size), session.family.preview
    noise = torch.randn(empty.shape, generator=generator(seed, "preview"))
    samples = comfy.sample.sample(session.model, noise, how.steps, how.guidance, how.sampler, how.scheduler, positive,
                                  negative, empty, disable_pbar=True, seed=seed % 2**63)
    if not samples.isfinite().all():
        raise ValueError("the model gives values that are not numbers in it")
    picture = vae.decode(samples)[0].float().cpu()
    if not picture.isfinite().all():
        raise ValueError("the VAE gives values that are not numbers for it; start ComfyUI with --fp32-vae, or connect "
                         "the VAE of the same checkpoint")
    return picture

