"""The attention of a model to a latent that is given and noised, without sampling."""
from __future__ import annotations

from collections.abc import Sequence

import comfy.model_management
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from ..attention.words import Words
from ..families.layers import AttentionLayer
from ..families.noise import noise_levels
from .record import Record
from .sampling_recorder import recording_model

TIMESTEPS = 1000  # in which people count, whatever number of levels a model has


def record_latent(model, conditioning, latent: Tensor, timesteps: Sequence[int], seed: int, record: Record,
                  layers: Sequence[AttentionLayer], words: Words) -> None:
    """Fills `record` with one run whose steps are the timesteps (0 to 999), the noisiest first.

    latent: (images, C, h, w) as LATENT holds it. The noise is the one a sampler would draw for `seed`.
    """
    levels, noisiest_first = noise_levels(model), torch.tensor(sorted(set(timesteps), reverse=True))
    numbers = noisiest_first * levels.count // TIMESTEPS
    sigmas = torch.cat([levels.sigma(numbers).cpu(), torch.zeros(1)])
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
    guider = comfy.samplers.CFGGuider(recording_model(model, record, layers, words))
    guider.inner_set_conds({"positive": conditioning})
    bar = comfy.utils.ProgressBar(len(noisiest_first))
    guider.sample(noise, latent, _Probe(), sigmas, callback=lambda *_: bar.update(1), disable_pbar=True, seed=seed)


class _Probe(comfy.samplers.Sampler):
    """Runs the model once at each noise level and gives the latent back."""

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None,
               disable_pbar=False) -> Tensor:
        """The latent in the model's space, unchanged."""
        assert latent_image is not None, "a probe looks at a latent"
        sampling = model_wrap.inner_model.model_sampling
        for step, sigma in enumerate(sigmas[:-1]):
            comfy.model_management.throw_exception_if_processing_interrupted()
            noised = sampling.noise_scaling(sigma, noise.clone(), latent_image)
            denoised = model_wrap(noised, sigma.expand(len(noised)), **extra_args)
            callback(step, denoised, noised, len(sigmas) - 1)
        return latent_image
