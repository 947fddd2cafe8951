"""The miniature Stable Diffusion and its oracle, and how pictures are drawn: ComfyUI's own loader, sampler and VAE."""
from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from miniature.checkpoint import load_latent_encoder, load_picture_encoder
from miniature.data import grouped
from miniature.network import PictureEncoder
from miniature.oracle import Oracle

if TYPE_CHECKING:
    from .vision import MiniatureVision

Conditioning = list[list[Any]]
SHIPPED = "contextualizer.safetensors"  # its file beside the checkpoint


class Networks(NamedTuple):
    """What *Load Checkpoint* gives."""

    model: Any
    clip: Any
    vae: Any


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn: names of ComfyUI's samplers and schedulers; the sampler must add no noise of its own."""

    sampler: str = "dpmpp_2m"
    scheduler: str = "normal"
    steps: int = 15
    guidance: float = 5.0


def digest(file: bytes) -> str:
    """SHA-256 of a safetensors file's tensors, their names and places; b"" for no file."""
    size = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:size] or "{}")
    header.pop("__metadata__", None)
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode() + file[size:]).hexdigest()


class World:
    """A checkpoint file and an oracle file, read once and loaded when they are first needed.

    weights, judge: digests of both, whatever their metadata claim. Without an oracle nothing can be judged.
    """

    def __init__(self, checkpoint: Path, oracle: Path | None = None):
        self.contextualizer_file = checkpoint.with_name(SHIPPED)
        self._checkpoint, self._oracle = (file.read_bytes() if file else b"" for file in (checkpoint, oracle))
        self.weights, self.judge = map(digest, (self._checkpoint, self._oracle))

    @functools.cached_property
    def networks(self) -> Networks:
        """MODEL, CLIP and VAE, detected and loaded as the stock loader does."""
        import comfy.sd

        from miniature.models import register

        register()
        with torch.inference_mode():
            return Networks(*comfy.sd.load_state_dict_guess_config(safetensors.torch.load(self._checkpoint))[:3])

    @functools.cached_property
    def picture_encoder(self) -> PictureEncoder:
        """The checkpoint's own: pictures (B, 3, 64, 64) in 0..1 to visual tokens (B, 8, 128)."""
        return load_picture_encoder(safetensors.torch.load(self._checkpoint))

    @functools.cached_property
    def vision(self) -> MiniatureVision:
        """The checkpoint's own: what learned beside its text encoder which caption a picture has."""
        from .vision import MiniatureVision

        return MiniatureVision(self.networks.vae, load_latent_encoder(safetensors.torch.load(self._checkpoint)))

    @functools.cached_property
    def oracle(self) -> Oracle:
        """The judge, in float32."""
        oracle = Oracle()
        oracle.load_state_dict({key: value.float() for key, value in safetensors.torch.load(self._oracle).items()})
        return oracle.eval().requires_grad_(False)

    @property
    def context(self) -> str:
        """Digest of the contextualizer's file, if there is one."""
        return digest(self.contextualizer_file.read_bytes() if self.contextualizer_file.is_file() else b"")

    @functools.cached_property
    def contextualizer(self) -> Any:
        """The text encoder's, from the file beside the checkpoint. Raises ValueError if there is none."""
        from personalize.nodes.papers.context.files import read_contextualizer

        return read_contextualizer(self.contextualizer_file)

    @property
    def latent_channels(self) -> int:
        """Channels of the model's latents."""
        return self.networks.model.get_model_object("latent_format").latent_channels

    @torch.inference_mode()
    def encode(self, prompt: str, clip: Any = None) -> Conditioning:
        """A prompt's CONDITIONING; `clip`: one that was taught words, in place of the checkpoint's."""
        clip = clip or self.networks.clip
        return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))

    def draw_each(self, positive: Sequence[Conditioning], noise: Tensor, how: Sampling, model: Any = None) -> Tensor:
        """As `draw`, for conditionings of one row each; those of one length share a run of the sampler."""
        pictures = torch.zeros(len(noise), 3, 8 * noise.shape[2], 8 * noise.shape[3])
        for rows in grouped(words.shape[1] for [(words, _)] in positive):
            pictures[rows] = self.draw(batched([positive[row] for row in rows]), noise[rows], how, model)
        return pictures

    @torch.inference_mode()
    def draw(self, positive: Conditioning, noise: Tensor, how: Sampling, model: Any = None) -> Tensor:
        """Pictures (N, 3, H, W) in 0..1 from noise (N, C, h, w), all in one run of the sampler.

        positive: a row a picture. model: a patched clone, in place of the checkpoint's.
        """
        import comfy.sample

        if not len(noise):
            return torch.zeros(0, 3, 8 * noise.shape[2], 8 * noise.shape[3])
        latents = comfy.sample.sample(model or self.networks.model, noise, how.steps, how.guidance, how.sampler,
                                      how.scheduler, positive, self.encode(""), torch.zeros_like(noise),
                                      disable_pbar=True, seed=0)
        return self.networks.vae.decode(latents).movedim(-1, 1).float().cpu().clamp(0, 1)

    @torch.inference_mode()
    def reconstruct(self, pictures: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in 0..1 through the VAE and back."""
        vae = self.networks.vae
        return vae.decode(vae.encode(pictures.movedim(1, -1))).movedim(-1, 1).float().cpu().clamp(0, 1)


def batched(conditionings: Sequence[Conditioning]) -> Conditioning:
    """Conditionings of one entry each as one entry with their rows; every tensor among the options is joined too."""
    entries = [entry for entry, in conditionings]
    if not entries:
        return []
    return [[torch.cat([words for words, _ in entries]), _joined([options for _, options in entries])]]


def _joined(options: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The tensors of all, also those within a mapping."""
    found = {}
    for name, value in options[0].items():
        values = [each[name] for each in options]
        if isinstance(value, Tensor):
            found[name] = torch.cat(values)
        elif isinstance(value, Mapping):
            found[name] = _joined(values)
    return found
