"""References: pictures of an object, how a sampling run uses them, and their object masks."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...attention.masks import on_grid
from ...attention.schedule import WHOLE_SCHEDULE
from ...families.latents import latent_space
from ...training.augment import Fit, Preparation
from ...training.dataset import check_vae, encode_picture
from ...training.images import prepare, sources_from_tensors
from .maths import Variant, given_mask, object_mask

Halves = Literal["both", "shared", "conditional"]
MOST_REFERENCES = 16  # one of 512 × 512 keeps 20 MB of features in SD1.x, for each prompt


@dataclass(frozen=True, eq=False)
class Reference:
    """Pictures of one object.

    latents: (k, C, h, w) in the model's latent space; of equal size for all objects.
    words: what prompts call the object; "" for the word that the image blocks were trained with.
    masks: (k, H, W) in 0…1, 1 on the object, or None to find it in the attention to the word.
    """

    latents: Tensor
    words: str = ""
    masks: Tensor | None = None


@dataclass(frozen=True)
class Use:
    """How the references are used.

    variant: how the object masks are made and act. strength: 0…1. window: start and end as shares of the schedule.
    halves: which rows read which reference run. "both": all, each half with its own prompt, as released; "shared": all
        read the one with the positive prompt; "conditional": only the positive rows.
    reuse: steps that share one run on the references; 1 for a new one in each.
    """

    variant: Variant
    strength: float = 1.0
    window: tuple[float, float] = WHOLE_SCHEDULE
    halves: Halves = "both"
    reuse: int = 1


def encode_reference(model, vae, image: Tensor, words: str, mask: Tensor | None, size: int, fit: Fit) -> Reference:
    """Pictures (B, H, W, C) of one object as squares of `size` pixels, encoded, with their masks.

    words: what prompts call the object. mask: (B or 1, H, W), 1 on it, or None for what is not transparent.
    Raises ValueError if there are too many pictures, or picture, mask and VAE do not fit each other.
    """
    sources = sources_from_tensors([image], [] if mask is None else [mask])
    if len(sources) > MOST_REFERENCES:
        raise ValueError(f"There are {len(sources)} reference pictures but Apply ViCo looks at {MOST_REFERENCES} at "
                         "most, as the features of each stay in memory; connect fewer.")
    pictures = prepare(sources, Preparation(size, fit, "none", 1, 0)).pictures
    made = [group for picture in pictures for group in picture.made()]
    check_vae(vae)
    with torch.random.fork_rng(devices=[vae.device] if vae.device.type == "cuda" else []):
        torch.manual_seed(0)  # a VAE may draw its latent
        latents = encode_picture(vae, latent_space(model), torch.cat([pixels for pixels, _ in made]),
                                 f"the reference of {words}" if words else "the reference")
    masks = None
    if any(each is not None for _, each in made):
        masks = torch.cat([torch.ones_like(pixels[..., 0]) if each is None else each for pixels, each in made])
    return Reference(latents, words, masks)


def object_masks(references: Sequence[Reference], maps: Tensor, grid: tuple[int, int], variant: Variant
                 ) -> Tensor | None:
    """(n, k, P) from maps (n, k, P, objects) of all k pictures: each picture's mask is the one given with it, or comes
    from the word of its own object. None if no picture is masked."""
    if variant == "none" and all(reference.masks is None for reference in references):
        return None
    pictures = [len(reference.latents) for reference in references]
    masks = [_mask(reference, own[..., i], grid, variant)
             for i, (reference, own) in enumerate(zip(references, maps.split(pictures, dim=1), strict=True))]
    return torch.cat(masks, 1)


def _mask(reference: Reference, maps: Tensor, grid: tuple[int, int], variant: Variant) -> Tensor:
    """(n, k, P) of one object's k pictures, from the maps (n, k, P) of its word."""
    if reference.masks is not None:
        covered = on_grid(reference.masks.to(maps), grid).flatten(1)
        return given_mask(covered, variant).to(maps).expand(len(maps), -1, -1)
    found = object_mask(maps, variant)
    return torch.ones_like(maps) if found is None else found.to(maps)
