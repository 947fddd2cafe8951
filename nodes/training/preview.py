"""Pictures drawn while training, with the vectors and weights of the moment."""
from __future__ import annotations

from collections.abc import Sequence

import comfy.sample
import torch
from torch import Tensor

from ..attention.by_layer import read_by_layer
from ..families.family import PreviewDefaults
from ..families.latents import latent_space
from ..text.apply import clip_with_vectors, layered_words
from ..text.tokens import prompt_tokens
from ..text.vectors import Vectors, WordVectors
from .seeds import generator
from .session import Session


def preview_noise(model, size: tuple[int, int], seed: int, number: int = 0) -> Tensor:
    """Noise `number` of a seed, (1, C, h, w): always the same. size: height and width of the picture in pixels."""
    purpose = ("preview", number) if number else ("preview",)
    return torch.randn(latent_space(model).empty(size).shape, generator=generator(seed, *purpose))


class Painter:
    """Draws prompts with `vectors` and with the weights as they are, until a step of training changes them.

    Pushes the session's models out of memory: load them again afterwards. Draws no random numbers of torch's own.
    """

    def __init__(self, session: Session, vae, vectors: Vectors, prompts: Sequence[str]):
        self._session, self._vae = session, vae
        clip = clip_with_vectors(session.clip, {
            name: WordVectors({key: v.detach() for key, v in by_encoder.items()}, by_encoder.axis)
            for name, by_encoder in vectors.items()})
        if layered_words(clip):
            read_by_layer(session.model)
        with torch.no_grad():
            self._positive = {prompt: _encoded(clip, prompt) for prompt in prompts}
            self._negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))

    @torch.no_grad()
    def draw(self, prompt: str, noise: Tensor, how: PreviewDefaults, seed: int) -> Tensor:
        """Pictures (B, H, W, 3) in 0…1 of one of the prompts, from noise (B, C, h, w).

        seed: of what a sampler draws. Raises ValueError if they are made of no numbers.
        """
        return drawn(self._session.model, self._vae, noise, self._positive[prompt], self._negative, how, seed)


def drawn(model, vae, noise: Tensor, positive, negative, how: PreviewDefaults, seed: int) -> Tensor:
    """Pictures (B, H, W, 3) in 0…1 that a MODEL makes of CONDITIONINGs, from noise (B, C, h, w).

    seed: of what a sampler draws. Raises ValueError if they are made of no numbers.
    """
    with torch.random.fork_rng([model.load_device] if model.load_device.type == "cuda" else []):
        samples = comfy.sample.sample(model, noise, how.steps, how.guidance, how.sampler, how.scheduler, positive,
                                      negative, torch.zeros_like(noise), disable_pbar=True, seed=seed % 2**63)
    if not samples.isfinite().all():
        raise ValueError("the model gives values that are not numbers in it")
    pictures = vae.decode(samples).float().cpu()
    if not pictures.isfinite().all():
        raise ValueError("the VAE gives values that are not numbers for it; start ComfyUI with --fp32-vae, or "
                         "connect the VAE of the same checkpoint")
    return pictures


def _encoded(clip, prompt: str):
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt),
                                             add_dict=prompt_tokens(clip, prompt).layout.options())
