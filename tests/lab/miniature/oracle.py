"""The judge: small classifiers that say what a picture shows, measured before they are trusted.

``SceneNet`` looks at the whole picture and finds the subject's mask; ``SubjectNet`` looks at the subject alone, cut out
by that mask and enlarged, so that a second object or the place is not mistaken for it. Both together tell class,
pattern, colours, pose, accessory, background, style and second object; the subject alone becomes a unit vector, close
for one subject in any pose, place and style, and far for any other of the same class.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from .factors import (
    ACCESSORIES,
    BACKGROUNDS,
    CLASSES,
    COLOR_NAMES,
    PATTERNS,
    POSES,
    PROPS,
    RELATIONS,
    STYLES,
    Scene,
)
from .grammar import Said
from .synthesis import EVIDENCE, SecondLook, explained, silhouettes

SECONDS = ("none", *PROPS, *CLASSES)
CHOICES: dict[str, tuple[str, ...]] = {
    "kind": CLASSES, "pattern": PATTERNS, "pose": POSES, "accessory": ACCESSORIES, "background": BACKGROUNDS,
    "style": STYLES, "second": SECONDS, "relation": ("none", *RELATIONS),
}
SECOND_LOOKS = {
    "kind": "overlaps",
    "pattern": "explained",
}  # factors judged once more, and what by, as ``see`` names it
IDENTITY_WIDTH = 64
READ_AT_ONCE = 24             # pictures
CLOSEUP, MARGIN = 64, 1.1     # pixels of the enlarged subject; its frame beside the subject's own longer side
WEIGHTS = Path(__file__).parent / "weights" / "oracle.safetensors"


def _stage(before: int, after: int) -> torch.nn.Sequential:
    """Half the resolution, two convolutions."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(before, after, 3, 2, 1), torch.nn.GroupNorm(8, after), torch.nn.SiLU(),
        torch.nn.Conv2d(after, after, 3, 1, 1), torch.nn.GroupNorm(8, after), torch.nn.SiLU(),
    )


def _pooled(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)


class SceneNet(torch.nn.Module):
    """(B, 3, 128, 128) in 0..1 -> features (B, 384) and the subject's mask as logits (B, 1, 128, 128)."""

    widths = (32, 64, 128, 192)
    mask_width = 32

    def __init__(self) -> None:
        super().__init__()
        first, thin = self.widths[0], self.mask_width
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, first, 5, 2, 2), torch.nn.GroupNorm(8, first),
                                        torch.nn.SiLU())
        self.down = torch.nn.ModuleList(_stage(before, after) for before, after in zip(self.widths, self.widths[1:]))
        self.lateral = torch.nn.ModuleList(torch.nn.Conv2d(width, thin, 1) for width in self.widths)
        self.smooth = torch.nn.ModuleList(torch.nn.Conv2d(thin, thin, 3, 1, 1) for _ in self.widths)
        self.mask = torch.nn.Conv2d(thin, 1, 1)

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        levels = [self.stem(2 * pictures - 1)]
        for stage in self.down:
            levels.append(stage(levels[-1]))
        return _pooled(levels[-1]), self._mask(levels)

    def _mask(self, levels: list[torch.Tensor]) -> torch.Tensor:
        """From the coarsest level up, each finer one added: a feature pyramid."""
        x = torch.zeros((), device=levels[0].device)
        for level, lateral, smooth in reversed(list(zip(levels, self.lateral, self.smooth))):
            x = lateral(level) + (F.interpolate(x, scale_factor=2.0) if x.dim() else x)
            x = F.silu(smooth(x))
        return F.interpolate(self.mask(x), scale_factor=2.0, mode="bilinear")


class SubjectNet(torch.nn.Module):
    """Close-ups (B, 4, 64, 64): subject on grey, and its mask -> features (B, 256)."""

    widths = (32, 64, 96, 128)

    def __init__(self) -> None:
        super().__init__()
        first = self.widths[0]
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(4, first, 3, 1, 1), torch.nn.GroupNorm(8, first),
                                        torch.nn.SiLU())
        self.down = torch.nn.Sequential(*(_stage(b, a) for b, a in zip(self.widths, self.widths[1:])))

    def forward(self, closeups: torch.Tensor) -> torch.Tensor:
        return _pooled(self.down(self.stem(closeups)))


def closeup(pictures: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The subject alone, filling the frame: (B, 4, 64, 64), pictures scaled to -1..1 times the mask, and the mask.

    pictures (B, 3, H, W) in 0..1; masks (B, 1, H, W) of 0 and 1. Where a mask is empty the frame is the whole picture.
    """
    cut = torch.cat([(2 * pictures.float() - 1) * masks, masks], 1)
    (top, bottom), (left, right) = (_extent(masks.amax(axis)[:, 0]) for axis in (3, 2))
    half = MARGIN * torch.maximum(bottom - top, right - left) / 2
    theta = pictures.new_zeros(len(pictures), 2, 3, dtype=torch.float32)
    theta[:, 0, 0] = theta[:, 1, 1] = half
    theta[:, 0, 2], theta[:, 1, 2] = (left + right) / 2, (top + bottom) / 2
    grid = F.affine_grid(theta, [len(cut), 4, CLOSEUP, CLOSEUP], align_corners=False)
    return F.grid_sample(cut, grid, align_corners=False)


def _extent(covered: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First and last covered place of each row (B, N), as edges in -1..1; -1 and 1 where nothing is covered."""
    count = covered.shape[1]
    places = torch.arange(count, device=covered.device)
    first = torch.where(covered > 0, places, count).amin(1)
    last = torch.where(covered > 0, places + 1, 0).amax(1)
    empty = last == 0
    return (torch.where(empty, 0, first) * 2 / count - 1, torch.where(empty, count, last) * 2 / count - 1)


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
    if not identity.basic:
        return [-1.0] * len(COLOR_NAMES)
    shown = {color.name for color in identity.colors}
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
    """Both networks and what is read from them; ``judge`` is what measures call."""

    def __init__(self) -> None:
        super().__init__()
        self.scene, self.subject = SceneNet(), SubjectNet()
        close = 2 * SubjectNet.widths[-1]
        wide = 2 * SceneNet.widths[-1]
        self.trunk = torch.nn.Sequential(torch.nn.Linear(wide + close, wide), torch.nn.SiLU())
        self.heads = torch.nn.ModuleDict({name: torch.nn.Linear(wide, len(options))
                                          for name, options in CHOICES.items()})
        self.colors = torch.nn.Linear(wide, len(COLOR_NAMES))
        self.likeness = torch.nn.Sequential(torch.nn.Linear(close, 128), torch.nn.SiLU(),
                                            torch.nn.Linear(128, IDENTITY_WIDTH))
        self.second_looks = torch.nn.ModuleDict({"kind": SecondLook(len(CLASSES), len(CLASSES)),
                                                 "pattern": SecondLook(len(PATTERNS), EVIDENCE)})

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        """Pictures (B, 3, 128, 128) in 0..1 -> logits a factor, ``colors`` (one a named colour), ``mask``, and
        ``identity`` (B, 64), unit vectors."""
        whole, mask = self.scene(pictures)
        return self.read(pictures, whole, mask, (mask > 0).float())

    def read(self, pictures: torch.Tensor, whole: torch.Tensor, mask: torch.Tensor,
             under: torch.Tensor) -> dict[str, torch.Tensor]:
        """As ``forward``, from what ``scene`` gave, with the subject cut out by masks ``under`` (B, 1, 128, 128)."""
        close = self.subject(closeup(pictures, under))
        features = self.trunk(torch.cat([whole, close], 1))
        logits = {name: head(features) for name, head in self.heads.items()}
        identity = F.normalize(self.likeness(close).float(), dim=1)
        return logits | {"colors": self.colors(features), "mask": mask, "identity": identity}

    def identity(self, pictures: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Unit vectors (B, 64) of the subjects under masks (B, 1, 128, 128) of 0 and 1."""
        return F.normalize(self.likeness(self.subject(closeup(pictures, masks))).float(), dim=1)

    @torch.no_grad()
    def see(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        """``forward`` of pictures (B, 3, 128, 128) in 0..1, on the CPU, and what second looks go by: ``overlaps``
        (B, classes), the IoU of each class's silhouette with the mask, and ``explained`` (B, EVIDENCE)."""
        seen = {name: values.float().cpu() for name, values in self(pictures.to(self.device)).items()}
        masks = seen["mask"][:, 0] > 0
        fits = [silhouettes(mask, POSES[i]) for mask, i in zip(masks, seen["pose"].argmax(1), strict=True)]
        seen["overlaps"] = torch.stack([overlaps for overlaps, _ in fits])
        kinds = self.looked_at("kind", seen).argmax(1).tolist()
        seen["explained"] = torch.stack([
            explained(picture, mask, CLASSES[kind], places[kind], overlaps[kind])
            for picture, mask, kind, (overlaps, places) in zip(pictures.cpu(), masks, kinds, fits, strict=True)])
        return seen

    def looked_at(self, name: str, seen: dict[str, torch.Tensor]) -> torch.Tensor:
        """The logits of one of SECOND_LOOKS in what ``see`` saw, corrected."""
        guess, evidence = (seen[key].to(self.device) for key in (name, SECOND_LOOKS[name]))
        return self.second_looks[name](guess, evidence).cpu()

    @torch.no_grad()
    def judge(self, pictures: torch.Tensor) -> list[Judgement]:
        """Pictures (B, 3, 128, 128) in 0..1, as many as there are. The subject is read under the oracle's own mask."""
        return [judged for part in pictures.split(READ_AT_ONCE) for judged in self._judge(part)]

    def _judge(self, pictures: torch.Tensor) -> list[Judgement]:
        seen = self.see(pictures)
        seen |= {name: self.looked_at(name, seen) for name in SECOND_LOOKS}
        masks, identities = (seen["mask"] > 0).float(), seen["identity"]
        return [self._one({name: values[i] for name, values in seen.items()}, masks[i, 0], identities[i])
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

