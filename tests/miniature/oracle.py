"""The judge: small classifiers that say what a picture shows, measured before they are trusted.

``FactorNet`` reads a 128 × 128 picture: class, pattern, colours, pose, accessory, background, style, second object,
and the subject's mask. ``IdentityNet`` maps a masked subject to a unit vector, close for one subject in any pose,
place and style, and far for any other of the same class.
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from .factors import (
    ACCESSORIES, BACKGROUNDS, CLASSES, COLOR_NAMES, PATTERNS, POSES, PROPS, RELATIONS, STYLES, Scene,
)
from .grammar import Said

SECONDS = ("none", *PROPS, *CLASSES)
CHOICES: dict[str, tuple[str, ...]] = {
    "kind": CLASSES, "pattern": PATTERNS, "pose": POSES, "accessory": ACCESSORIES, "background": BACKGROUNDS,
    "style": STYLES, "second": SECONDS, "relation": ("none", *RELATIONS),
}
IDENTITY_WIDTH = 64
WEIGHTS = Path(__file__).parent / "weights" / "oracle.safetensors"


def _stage(before: int, after: int) -> torch.nn.Sequential:
    """Half the resolution, two convolutions."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(before, after, 3, 2, 1), torch.nn.GroupNorm(8, after), torch.nn.SiLU(),
        torch.nn.Conv2d(after, after, 3, 1, 1), torch.nn.GroupNorm(8, after), torch.nn.SiLU(),
    )


class FactorNet(torch.nn.Module):
    """(B, 3, 128, 128) in 0..1 -> logits per factor, ``colors`` (one a named colour), ``mask`` (B, 1, 128, 128)."""

    widths = (32, 64, 128, 192)
    mask_width = 32

    def __init__(self) -> None:
        super().__init__()
        first, wide = self.widths[0], 2 * self.widths[-1]
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, first, 5, 2, 2), torch.nn.GroupNorm(8, first), torch.nn.SiLU())
        self.down = torch.nn.ModuleList(_stage(before, after) for before, after in zip(self.widths, self.widths[1:]))
        thin = self.mask_width
        self.lateral = torch.nn.ModuleList(torch.nn.Conv2d(width, thin, 1) for width in self.widths)
        self.smooth = torch.nn.ModuleList(torch.nn.Conv2d(thin, thin, 3, 1, 1) for _ in self.widths)
        self.mask = torch.nn.Conv2d(thin, 1, 1)
        self.trunk = torch.nn.Sequential(torch.nn.Linear(wide, wide), torch.nn.SiLU())
        heads = {name: torch.nn.Linear(wide, len(options)) for name, options in CHOICES.items()}
        self.heads = torch.nn.ModuleDict(heads)
        self.colors = torch.nn.Linear(wide, len(COLOR_NAMES))

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.stem(2 * pictures - 1)
        levels = [x]
        for stage in self.down:
            x = stage(x)
            levels.append(x)
        pooled = self.trunk(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))
        logits = {name: head(pooled) for name, head in self.heads.items()}
        return logits | {"colors": self.colors(pooled), "mask": self._mask(levels)}

    def _mask(self, levels: list[torch.Tensor]) -> torch.Tensor:
        """From the coarsest level up, each finer one added: a feature pyramid."""
        x = torch.zeros((), device=levels[0].device)
        for level, lateral, smooth in reversed(list(zip(levels, self.lateral, self.smooth))):
            x = lateral(level) + (F.interpolate(x, scale_factor=2.0) if x.dim() else x)
            x = F.silu(smooth(x))
        return F.interpolate(self.mask(x), scale_factor=2.0, mode="bilinear")


class IdentityNet(torch.nn.Module):
    """Subject on grey (B, 3, 128, 128), read at half the resolution -> unit vectors (B, 64)."""

    widths = (32, 64, 96, 128)

    def __init__(self) -> None:
        super().__init__()
        self.down = torch.nn.Sequential(*(_stage(b, a) for b, a in zip((3, *self.widths), self.widths)))
        self.out = torch.nn.Sequential(torch.nn.Linear(2 * self.widths[-1], 128), torch.nn.SiLU(),
                                       torch.nn.Linear(128, IDENTITY_WIDTH))

    def forward(self, pictures: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.down(F.avg_pool2d((2 * pictures - 1) * mask, 2))
        return F.normalize(self.out(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)).float(), dim=1)


def truth(scenes: Sequence[Scene]) -> dict[str, torch.Tensor]:
    """Labels: one index a factor (B,), and ``colors`` (B, 8), -1 where a subject has no named colours."""
    def value(scene: Scene, name: str) -> str:
        if name in ("kind", "pattern"):
            return getattr(scene.identity, name)
        if name in ("second", "relation"):
            return getattr(scene.second, {"second": "kind"}.get(name, name)) if scene.second else "none"
        return getattr(scene, name)

    labels = {name: torch.tensor([options.index(value(scene, name)) for scene in scenes])
              for name, options in CHOICES.items()}
    return labels | {"colors": torch.tensor([_color_flags(scene) for scene in scenes], dtype=torch.float32)}


def _color_flags(scene: Scene) -> list[float]:
    identity = scene.identity
    if not identity.named:
        return [-1.0] * len(COLOR_NAMES)
    shown = {identity.first.name} if identity.pattern == "plain" else {identity.first.name, identity.second.name}
    return [float(name in shown) for name in COLOR_NAMES]


@dataclass(frozen=True)
class Judgement:
    """What the oracle sees in one picture. ``colors``: the named colours of the subject."""

    factors: dict[str, str]
    colors: frozenset[str]
    mask: torch.Tensor
    identity: torch.Tensor

    def agrees(self, words: Said) -> dict[str, bool]:
        """Each factor that a prompt states -> whether the picture shows it (colours as a set)."""
        verdict = {}
        for name, seen in (("kind", "kind"), ("pattern", "pattern"), ("pose", "pose"), ("accessory", "accessory"),
                           ("background", "background"), ("style", "style"), ("relation", "relation"),
                           ("second_kind", "second")):
            wanted = getattr(words, name)
            if wanted is not None:
                verdict[name] = self.factors[seen] == wanted
        if words.first is not None:
            verdict["colors"] = self.colors == frozenset(filter(None, (words.first, words.second_color)))
        return verdict


class Oracle(torch.nn.Module):
    """Both networks; ``judge`` is what measures call."""

    def __init__(self) -> None:
        super().__init__()
        self.factors, self.identity = FactorNet(), IdentityNet()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @torch.no_grad()
    def judge(self, pictures: torch.Tensor) -> list[Judgement]:
        """Pictures (B, 3, 128, 128) in 0..1. The identity is read from the subject under the oracle's own mask."""
        pictures = pictures.to(self.device)
        seen = {name: logits.float() for name, logits in self.factors(pictures).items()}
        masks = (seen["mask"] > 0).float()
        identities = self.identity(pictures, masks).cpu()
        seen, masks = {name: logits.cpu() for name, logits in seen.items()}, masks.cpu()
        return [self._one({name: logits[i] for name, logits in seen.items()}, masks[i, 0], identities[i])
                for i in range(len(pictures))]

    @staticmethod
    def _one(seen: dict[str, torch.Tensor], mask: torch.Tensor, identity: torch.Tensor) -> Judgement:
        factors = {name: options[int(seen[name].argmax())] for name, options in CHOICES.items()}
        count = 1 if factors["pattern"] == "plain" else 2
        strongest = seen["colors"].topk(count).indices.tolist()
        return Judgement(factors, frozenset(COLOR_NAMES[i] for i in strongest), mask, identity)


def load_oracle(file: Path = WEIGHTS) -> Oracle:
    """The trained oracle in float32, not training."""
    oracle = Oracle()
    oracle.load_state_dict({key: value.float() for key, value in load_file(file).items()})
    return oracle.eval().requires_grad_(False)

