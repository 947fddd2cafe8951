"""Training pictures as latents on disk: numbered shards, made once for one autoencoder, by several processes."""
from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from .autoencoder import load_autoencoder
from .comfyui import fast_half
from .data import draw_picture, draw_pictures, scenes
from .deadline import Deadline
from .factors import Scene, sample_scene, with_factors
from .flow_network import LanguageModel
from .grammar import caption
from .network import REFERENCE_SIZE, TextEncoder, TwinTextEncoder
from .renderer import draw

SHARD = 2048                  # scenes; the first half of them also has a reference picture of its subject
REFERENCES = SHARD // 2
LATENT = 16                   # cells of a picture's latents a side
SAME_POSE = 0.7               # references in the target's pose: where pose bias comes from
CAPTIONS, QUIET_CAPTIONS = 5, 2   # sentences kept for each scene; quiet ones stand beside references
LOOKS = 0.85                  # how often a sentence says how a nameable subject looks; a quiet one never does,
QUIET_POSE = 0.2              # and seldom its pose, as captions of photographs: the reference shows it


def shard_scenes(number: int) -> tuple[list[Scene], list[Scene]]:
    """The targets of a shard and the reference scenes of its first half."""
    targets = scenes(SHARD, "train", 1000 + number)
    rng = random.Random(f"references {number}")
    return targets, [_reference(target, rng) for target in targets[:REFERENCES]]


def _reference(target: Scene, rng: random.Random) -> Scene:
    while True:
        scene = sample_scene(rng, identity=target.identity)
        scene = with_factors(scene, pose=target.pose) if rng.random() < SAME_POSE else scene
        if not scene.held_out:
            return scene


def _fingerprint(autoencoder_file: Path) -> str:
    """Of all that latents depend on: the encoder's weights and how scenes are drawn."""
    made_from = hashlib.sha256()
    for key, tensor in sorted(load_file(autoencoder_file).items()):
        if key.startswith("taesd_encoder."):
            made_from.update((tensor + 0).numpy().tobytes())  # -0 becomes 0: a running mean may change its sign
    for scene in scenes(24, "train", 0):
        made_from.update(draw_picture(scene).tobytes())
    return made_from.hexdigest()[:10]


@torch.no_grad()
def make_shards(folder: Path, autoencoder_file: Path, count: int, workers: int, on: torch.device,
                deadline: Deadline) -> list[Path]:
    """Files of the shards 0..count-1, drawing and encoding those that are missing; fewer when the deadline comes."""
    autoencoder = load_autoencoder(autoencoder_file).to(on, memory_format=torch.channels_last)
    made_from, files = _fingerprint(autoencoder_file), []
    for number in range(count):
        file = folder / "latents" / f"{made_from}-{number:04d}.safetensors"
        if not file.is_file():
            targets, references = shard_scenes(number)
            pictures = draw_pictures(targets + references, workers, deadline)
            if pictures is None:
                break
            _encode_shard(file, pictures, autoencoder, on)
            deadline.log(f"latents: shard {number + 1} of {count}")
        if not foreground_of(file).is_file():
            _save_foreground(foreground_of(file), shard_scenes(number)[0])
        files.append(file)
    return files


def foreground_of(file: Path) -> Path:
    """Where it is kept how much of each cell of a shard's latents the subject, what it wears and a second object
    cover."""
    return file.with_suffix(".foreground.safetensors")


def _save_foreground(file: Path, targets: list[Scene]) -> None:
    cells = [torch.from_numpy(1 - draw(scene).background)[None] for scene in targets]
    covered = F.adaptive_avg_pool2d(torch.stack(cells), LATENT).mul(255).round().byte()
    partial = file.with_suffix(".partial")
    save_file({"foreground": covered}, partial)
    partial.replace(file)


def _encode_shard(file: Path, pictures: list[np.ndarray], autoencoder: torch.nn.ModuleDict, on: torch.device) -> None:
    stack = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    latents = []
    for part in stack[:SHARD].split(32):
        with torch.autocast(on.type, torch.bfloat16, enabled=fast_half(on)):
            latents.append(autoencoder["encoder"](part.to(on).float() / 255).half().cpu())
    small = F.avg_pool2d(stack[SHARD:].float(), stack.shape[-1] // REFERENCE_SIZE).round().byte()
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    save_file({"latents": torch.cat(latents).contiguous(), "references": small.contiguous()}, partial)
    partial.replace(file)


@dataclass(frozen=True)
class Corpus:
    """All shards in memory. latents (N, 16, 16, 16) fp16, raw; references (N/2, 3, 64, 64) uint8 of the rows in
    ``with_reference``; tokens (N, 5, 77 or 64) int16, the last ``QUIET_CAPTIONS`` of them without the subject's looks;
    spread: standard deviation of the latents; foreground (N, 1, 16, 16) uint8: how much of a cell is no background."""

    latents: torch.Tensor
    references: torch.Tensor
    with_reference: torch.Tensor
    tokens: torch.Tensor
    spread: float
    foreground: torch.Tensor


def load_corpus(files: list[Path], text: TextEncoder | TwinTextEncoder | LanguageModel, on: torch.device,
                log: Callable[[str], None]) -> Corpus:
    """Shards and freshly written captions, on the device."""
    shards = [load_file(file) for file in files]
    tokens = torch.cat([_captions(number, text) for number in range(len(files))])
    log(f"latents: {len(tokens)} scenes, {tokens.shape[1]} captions each")
    rows = torch.cat([torch.arange(REFERENCES) + number * SHARD for number in range(len(files))])
    latents, references = (torch.cat([shard[key] for shard in shards]).to(on) for key in ("latents", "references"))
    foreground = torch.cat([load_file(foreground_of(file))["foreground"] for file in files]).to(on)
    return Corpus(latents, references, rows.to(on), tokens.to(on), float(latents[:SHARD].float().std()), foreground)


def _captions(number: int, text: TextEncoder | TwinTextEncoder | LanguageModel) -> torch.Tensor:
    rng = random.Random(f"captions {number}")
    targets, _ = shard_scenes(number)
    said = [(LOOKS, 1.0)] * (CAPTIONS - QUIET_CAPTIONS) + [(0.0, QUIET_POSE)] * QUIET_CAPTIONS
    spoken = [caption(scene, rng, looks=looks, pose=pose) for scene in targets for looks, pose in said]
    return text.padded(spoken).cpu().to(torch.int16).view(SHARD, CAPTIONS, -1)
