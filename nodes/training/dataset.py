"""Pictures as latents: encoded once, before the models are prepared for training."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..families.latents import LatentSpace, latent_space
from ..families.noise import NoiseLevels
from .batch import Noised, Picture, Row, Stream, Subject
from .failures import fitting
from .noise import add_noise
from .seeds import generator
from .session import unload


@dataclass(frozen=True)
class PictureLatents:
    """Latents (V, C, h, w) of a picture's variants in the model's latent space, masks (V, 1, h, w) or None, and the
    same where only a part of a variant is a picture."""

    latents: Tensor
    masks: Tensor | None
    valid: Tensor | None = None


class Dataset:
    """Latents of every picture of every subject, and of its prior, on the CPU."""

    def __init__(self, pictures: Sequence[Sequence[PictureLatents]], prior: Sequence[Sequence[PictureLatents]] = ()):
        self.pictures, self.prior = pictures, prior

    def noised(self, rows: Sequence[Row], levels: NoiseLevels, seed: int, step: int, stream: Stream, device) -> Noised:
        """The rows' latents, each with its own level, even over all of the model's, and its own noise."""
        pictures = self.prior if stream == "prior" else self.pictures
        chosen = [pictures[row.subject][row.picture] for row in rows]
        clean = torch.stack([p.latents[row.variant] for p, row in zip(chosen, rows, strict=True)])
        draw = generator(seed, "noise", stream, step)
        numbers = levels.draw(len(rows), draw)
        noise = torch.randn(clean.shape, generator=draw)
        masks, valid = (_of_rows([None if each is None else each[row.variant]
                                  for each, row in zip(kind, rows, strict=True)], clean, device)
                        for kind in ([p.masks for p in chosen], [p.valid for p in chosen]))
        return add_noise(levels, clean.to(device), noise.to(device), numbers, masks, valid)


def _of_rows(maps: Sequence[Tensor | None], clean: Tensor, device) -> Tensor | None:
    """(B, 1, h, w) of one map (1, h, w) for each row, 1 all over where it has none; None where no row has one."""
    if all(each is None for each in maps):
        return None
    whole = torch.ones(1, *clean.shape[2:])
    return torch.stack([whole if each is None else each for each in maps]).to(device)


def encode_pictures(vae, model, subjects: Sequence[Subject], seed: int) -> Dataset:
    """Encodes every variant of every picture, also of priors, with `vae`, then frees the VAE's memory.

    Raises ValueError if pictures differ in size or are no whole number of latent pixels, or as `encode_picture` does.
    """
    space = latent_space(model)
    _check_sizes(subjects, space.factor)
    check_vae(vae)
    devices = [vae.device] if vae.device.type == "cuda" else []

    def encoded(pictures: Sequence[Picture]) -> list[PictureLatents]:
        return [_encode(vae, space, picture, seed) for picture in pictures]

    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        own = [encoded(subject.pictures) for subject in subjects]
        prior = [encoded(subject.prior.pictures) if subject.prior else [] for subject in subjects]
    unload(vae.patcher)
    return Dataset(own, prior)


def _encode(vae, space: LatentSpace, picture, seed: int) -> PictureLatents:
    torch.manual_seed(seed % 2**63)
    latents: list[Tensor] = []
    masks: list[Tensor] = []
    for pixels, shapes in picture.made():
        latents.append(encode_picture(vae, space, pixels, picture.name))
        if shapes is not None:
            masks.append(F.interpolate(shapes.clone().float()[:, None], latents[-1].shape[2:], mode="area"))
    whole = torch.cat(latents)
    return PictureLatents(whole, torch.cat(masks) if masks else None, _valid(picture, whole, space.factor))


def _valid(picture: Picture, latents: Tensor, factor: int) -> Tensor | None:
    framings = [picture.framing(variant) for variant in range(picture.count)]
    if all(framing.region is None for framing in framings):
        return None
    height, width = latents.shape[-2:]
    return torch.stack([framing.valid(height, width, factor)[None] for framing in framings])


def encode_picture(vae, space: LatentSpace, pixels: Tensor, name: str) -> Tensor:
    """Latents (V, C, h, w) float32 on the CPU, in the model's space, of pictures (V, H, W, 3) in 0…1.

    name: of the picture, for messages. Raises ValueError if the VAE makes latents that the model does not take, or that
    are no numbers.
    """
    with fitting("Encoding the pictures with the VAE does", "set size lower, or close what else uses the memory"):
        latents = vae.encode(pixels).clone().float().cpu()
    if latents.ndim != 4 or latents.shape[1] != space.channels:
        raise ValueError(f"The VAE makes latents of {latents.shape[1]} channels but the model takes "
                         f"{space.channels}; connect the VAE of the same checkpoint.")
    if not latents.isfinite().all():
        raise ValueError(f"The VAE gives values that are not numbers for {name}; {_remedy(vae)}.")
    return space.from_vae(latents)


def check_vae(vae) -> None:
    """Raises ValueError if there is no VAE: a checkpoint without one gives an empty object."""
    if getattr(vae, "first_stage_model", None) is None:
        raise ValueError("The VAE is missing: the checkpoint holds none; load one with Load VAE.")


def _remedy(vae) -> str:
    if vae.vae_dtype == torch.float32:
        return "its file is damaged, or is that of another family: connect the VAE of the same checkpoint"
    return ("in half precision some VAEs overflow: start ComfyUI with --fp32-vae, or load a VAE made for half "
            "precision with Load VAE")


def _check_sizes(subjects: Sequence[Subject], factor: int) -> None:
    sizes = {}
    for subject in subjects:
        for picture in subject.pictures:
            sizes.setdefault(picture.size, f"{subject.concept.placeholder}: {picture.name}")
    if len(sizes) > 1:
        (a, first), (b, second) = list(sizes.items())[:2]
        raise ValueError(f"Pictures of one run need one size, but {first} is {a[1]}×{a[0]} and {second} is "
                         f"{b[1]}×{b[0]}; give every Subject node the same size.")
    side = next((side for size in sizes for side in size if side % factor), None)
    if side is not None:
        raise ValueError(f"The pictures have {side} pixels on a side, but the latents of this model are {factor} times "
                         f"smaller than pictures; set size of Subject to {side - side % factor} or "
                         f"{side - side % factor + factor}.")
