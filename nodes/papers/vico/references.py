"""Reference pictures as latents that image blocks can read."""
from __future__ import annotations

import torch
from torch import Tensor

from ...families.latents import latent_space
from ...training.augment import Fit, Preparation
from ...training.dataset import check_vae, encode_picture
from ...training.images import prepare, sources_from_tensors
from .apply import Reference

MOST_REFERENCES = 16  # one of 512 × 512 keeps 20 MB of features in SD1.x, for each prompt


def reference(model, vae, image: Tensor, words: str, mask: Tensor | None, size: int, fit: Fit) -> Reference:
    """Pictures (B, H, W, C) of one object as squares of `size` pixels, encoded, with their masks.

    words: what prompts call the object. mask: (B or 1, H, W), 1 on it, or None for what is not transparent.
    Raises ValueError if there are too many pictures, or picture, mask and VAE do not fit each other.
    """
    sources = sources_from_tensors([image], [] if mask is None else [mask])
    if len(sources) > MOST_REFERENCES:
        raise ValueError(f"There are {len(sources)} reference pictures but Apply ViCo looks at {MOST_REFERENCES} at "
                         "most, as the features of each stay in memory; connect fewer.")
    made = [picture.made() for picture in prepare(sources, Preparation(size, fit, "none", 1, 0)).pictures]
    check_vae(vae)
    with torch.random.fork_rng(devices=[vae.device] if vae.device.type == "cuda" else []):
        torch.manual_seed(0)  # a VAE may draw its latent
        latents = encode_picture(vae, latent_space(model), torch.cat([pixels for pixels, _ in made]),
                                 f"the reference of {words}" if words else "the reference")
    masks = None
    if any(each is not None for _, each in made):
        masks = torch.cat([torch.ones_like(pixels[..., 0]) if each is None else each for pixels, each in made])
    return Reference(latents, words, masks)
