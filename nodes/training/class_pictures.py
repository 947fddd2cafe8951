"""Pictures of a class, drawn by the model as it is, kept on the disk and found there again (DreamBooth's prior)."""
from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import torch

from ..families.family import PreviewDefaults
from ..families.find import family_of
from ..families.latents import latent_space
from ..files import write_file
from ..locations import OUTPUT, check_folder, first_folder
from ..run_files import RUNS
from .dataset import check_vae
from .description import clip_fingerprint, model_fingerprint, vae_fingerprint
from .failures import fitting
from .fingerprint import fingerprint
from .picture_reading import as_image, read_picture
from .preview import drawn
from .seeds import generator

FOLDER = f"{RUNS}/class-pictures"  # in ComfyUI's output folder
FORMAT = 1  # raised when the same inputs begin to give other pictures

_given: set[Path] = set()


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn. size: of a side, in pixels. seed: start of the noises. steps, guidance: of the sampler, 0
    for what suits the model."""

    size: int
    seed: int = 0
    steps: int = 0
    guidance: float = 0.0


@dataclass(frozen=True)
class Artist:
    """What draws: MODEL, CLIP and VAE as they come."""

    model: Any
    clip: Any
    vae: Any


def class_pictures(artist: Artist, prompts: Sequence[str], how: Drawing, progress: Callable[[int], None]) -> list[Path]:
    """The file of one picture for each prompt; equal prompts get other noises.

    A picture depends on the models, its prompt, `how` and how many of its prompt come before it, so that more of them
    go on where fewer ended. What is on the disk and can be read stays; each other one is written as soon as it is
    drawn. progress: called with the number of pictures that are there.
    Raises NotWritten and ComfyUI's interruption, after which those that are drawn are found again.
    """
    check_vae(artist.vae)
    check_folder(OUTPUT, FOLDER)
    folders, numbers = _folders(artist, set(prompts), how), defaultdict[str, Iterator[int]](lambda: count(1))
    paths = [folders[prompt] / f"{next(numbers[prompt]):05d}.png" for prompt in prompts]
    missing = [i for i, path in enumerate(paths) if not _is_whole(path, how.size)]
    progress(len(paths) - len(missing))
    for done, i in enumerate(missing, len(paths) - len(missing) + 1):
        mm.throw_exception_if_processing_interrupted()
        _draw(artist, prompts[i], int(paths[i].stem), how, paths[i])
        progress(done)
    _given.update(paths)
    return paths


def gone_pictures() -> list[str]:
    """Files that `class_pictures` has returned in this process and that are not there any more."""
    return sorted(str(path) for path in _given if not path.exists())


def _folders(artist: Artist, prompts: Iterable[str], how: Drawing) -> dict[str, Path]:
    """By prompt: the folder of its pictures, which is named after all that they depend on."""
    models = (model_fingerprint(artist.model), clip_fingerprint(artist.clip), vae_fingerprint(artist.vae))
    root, exact = first_folder(OUTPUT) / FOLDER, _exact(artist.model, how)
    keys = {prompt: fingerprint(FORMAT, *models, artist.clip.tokenize(prompt), how.size, how.seed, exact)
            for prompt in prompts}
    return {prompt: root / f"{_readable(prompt)}-{key[:16]}" for prompt, key in keys.items()}


def _exact(model, how: Drawing) -> PreviewDefaults:
    suits = family_of(model).preview
    return PreviewDefaults(suits.sampler, suits.scheduler, how.steps or suits.steps, how.guidance or suits.guidance)


def _readable(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:40].strip("-") or "prompt"


def _is_whole(path: Path, side: int) -> bool:
    try:
        return path.exists() and read_picture(path, side).channels.shape == (3, side, side)
    except ValueError:
        return False


def _draw(artist: Artist, prompt: str, number: int, how: Drawing, path: Path) -> None:
    """Draws picture `number` (from 1) of a prompt and writes it."""
    empty = latent_space(artist.model).empty((how.size, how.size))
    noise = torch.randn(empty.shape, generator=generator(how.seed, "class picture", number))
    with fitting("Drawing pictures of the class does", "close what else uses the memory, or set size of Subject lower"):
        positive, negative = (artist.clip.encode_from_tokens_scheduled(artist.clip.tokenize(text))
                              for text in (prompt, ""))
        try:
            (picture,) = drawn(artist.model, artist.vae, noise, positive, negative, _exact(artist.model, how), how.seed)
        except ValueError as error:
            raise ValueError(f"The class cannot be drawn by '{prompt}': {error}.") from error
    image = as_image(picture.clamp(0, 1).movedim(-1, 0))
    if image.size != (how.size, how.size):
        image = image.resize((how.size, how.size))
    write_file(path, lambda unfinished: image.save(unfinished, format="PNG"))
