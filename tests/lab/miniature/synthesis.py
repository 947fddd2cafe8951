"""Analysis by synthesis: a second look at a subject, by laying over it what the renderer would draw.

A class's silhouette, placed well, covers a mask nearly whole, and two flat colours in the right pattern explain nearly
all of a body's colours, in dark tones as in vivid ones, from two stripes as from six. A network has to see very many
pictures to find out; here it follows from how pictures are drawn. Where a picture is drawn otherwise, as a model may,
every class and every pattern fits badly, and the network's guess stands: how much to follow is learnt.
"""
from __future__ import annotations

import itertools
import math
from functools import cache, lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .factors import CLASSES, PATTERNS
from .renderer import LOCAL, REACH, TURN, body_middle, covers, pattern_cover, stripe_width
from .shapes import SUBJECTS

CELLS, COARSE = 72, 36          # places a side at which patterns and silhouettes are compared
SIZES = (0.96, 1.04)            # sizes tried beside those that a mask's width and height say
NUDGE = 0.03                    # how far (of the picture's half side) the place that fits best may still be off
DARK = 0.001                    # variance that every subject is given: evenness is not divided by zero
SOFTER = 0.3                    # a network is surer of scenes like those it learnt from than it is right about others
LEAST = 16                      # pixels of a mask, and cells of body, that must be seen
EVIDENCE = len(PATTERNS) + 2    # numbers that ``explained`` gives


class SecondLook(torch.nn.Module):
    """Corrects a network's guess among ``options`` by ``evidence`` numbers; untrained it keeps the guess's order."""

    def __init__(self, options: int, evidence: int) -> None:
        super().__init__()
        self.correct = torch.nn.Sequential(torch.nn.Linear(options + evidence, 32), torch.nn.SiLU(),
                                           torch.nn.Linear(32, options))
        torch.nn.init.zeros_(self.correct[-1].weight)
        torch.nn.init.zeros_(self.correct[-1].bias)

    def forward(self, guess: torch.Tensor, evidence: torch.Tensor) -> torch.Tensor:
        """Logits (B, options) and evidence (B, evidence) -> logits (B, options)."""
        guess = (SOFTER * guess).log_softmax(1)
        return guess + self.correct(torch.cat([guess / 4, 4 * evidence], 1))


def _cells(image: Image.Image) -> torch.Tensor:
    """(LOCAL, LOCAL) pixels -> (CELLS, CELLS) in 0..1."""
    return torch.from_numpy(np.asarray(image.reduce(LOCAL // CELLS), np.float32) / 255)


@cache
def _body(kind: str) -> torch.Tensor:
    """(CELLS, CELLS) in 0..1: where a class's own colours show, a cell off their edges."""
    return -F.max_pool2d(-_cells(covers(SUBJECTS[kind])[0])[None], 3, 1, 1)[0]


@lru_cache(maxsize=1)
def _silhouettes() -> tuple[torch.Tensor, torch.Tensor]:
    """All that each class covers: (classes, COARSE, COARSE) in 0..1, and its edges on its own square (classes, 2,
    2)."""
    whole = torch.stack([_cells(covers(SUBJECTS[kind])[1]) for kind in CLASSES])
    edges = torch.stack([_edges(((2 * i + 1) / CELLS - 1).flip(1).T) for i in map(torch.nonzero, whole > 0.5)])
    return F.avg_pool2d(whole, CELLS // COARSE), edges


@lru_cache(maxsize=1024)
def _patterns(kind: str, stripe: int) -> torch.Tensor:
    """(patterns, CELLS, CELLS): where the second colour of each lies."""
    middle = body_middle(SUBJECTS[kind])
    return torch.stack([_cells(pattern_cover(pattern, stripe, middle)) for pattern in PATTERNS])


def _edges(places: torch.Tensor) -> torch.Tensor:
    """Places (2, N) as x and y -> (2, 2): least and greatest of each, without the outermost half percent."""
    ordered, out = places.sort(1).values, places.shape[1] // 200
    return torch.stack([ordered[:, out], ordered[:, -1 - out]], 1)


def silhouettes(mask: torch.Tensor, pose: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Each class in this pose, laid over a mask (H, W) of bools so that they agree best.

    Their IoU (classes,), and where they lie (classes, 2, 3): affine maps from a shape's own square to the picture,
    -1..1 each. IoUs of zero where the mask is next to nothing.
    """
    if mask.sum() < LEAST:
        return torch.zeros(len(CLASSES)), torch.eye(2, 3).repeat(len(CLASSES), 1, 1)
    turn = math.radians(TURN[pose])
    back = torch.tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    upright = back @ ((2 * mask.nonzero().flip(1).T + 1) / mask.shape[-1] - 1)
    whole, shape_edges = _silhouettes()
    tried = _placements(_edges(upright), shape_edges, back.T)
    seen = _sampled(mask[None].float(), tried.flatten(0, 1), COARSE).view(*tried.shape[:2], COARSE, COARSE)
    shared, either = (how(seen, whole[:, None]).sum((2, 3)) for how in (torch.minimum, torch.maximum))
    best, which = (shared / either).max(1)
    return best, tried[torch.arange(len(CLASSES)), which]


def _placements(seen: torch.Tensor, own: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Affine maps (classes, N, 2, 3) at which shapes' edges reach a mask's: at either side or in the middle, since an
    accessory may hide the other side. Edges as of ``_edges``, seen (2, 2), own (classes, 2, 2); turn (2, 2): the
    rotation."""
    extents = (seen[:, 1] - seen[:, 0]) / (own[..., 1] - own[..., 0])
    sizes = torch.cat([extents, *(factor * extents.amax(1, keepdim=True) for factor in SIZES)], 1)[..., None, None]
    ends = seen - sizes * own[:, None]
    x, y = torch.cat([ends, ends.mean(-1, keepdim=True)], -1).unbind(2)
    middles = torch.stack(torch.broadcast_tensors(x[..., None], y[..., None, :]), -1).flatten(2, 3) @ turn.T
    turned = (sizes * turn)[:, :, None].expand(*middles.shape, 2)
    return torch.cat([turned, middles[..., None]], -1).flatten(1, 2)


def explained(picture: torch.Tensor, mask: torch.Tensor, kind: str, place: torch.Tensor,
              overlap: float) -> torch.Tensor:
    """(EVIDENCE,): the share, 0..1, of the body's colour variance that each pattern explains with two colours of its
    own (0 for "plain", which has one); the colours' standard deviation; ``overlap`` as it is.

    picture (3, H, W) in 0..1; mask (H, W) of bools; place (2, 3) and overlap as ``silhouettes`` gives for this class.
    All are zero where too little of the body is seen.
    """
    nudges = torch.tensor([*itertools.product((-NUDGE, 0.0, NUDGE), repeat=2)])
    nudged = place + F.pad(nudges[..., None], (2, 0))
    seen = _sampled(torch.cat([picture * mask, mask[None].float()]), nudged, CELLS)
    weight = (seen[:, 3] * (seen[:, 3] > 0.9) * _body(kind)).flatten(1)
    if weight.sum(1).min() < LEAST:
        return torch.zeros(EVIDENCE)
    colors = (seen[:, :3] / seen[:, 3:].clamp(min=1e-3)).flatten(2)
    size = float(place[:, 0].norm()) / REACH
    shares, variance = _shares(colors, _patterns(kind, stripe_width(size)).flatten(1), weight)
    return torch.cat([shares.amax(0), torch.stack([variance.sqrt().mean(), torch.as_tensor(overlap)])])


def _sampled(layers: torch.Tensor, places: torch.Tensor, cells: int) -> torch.Tensor:
    """Layers (K, H, W) of a picture as they lie on squares at places (N, 2, 3): (N, K, cells, cells)."""
    grids = F.affine_grid(places, [len(places), 1, cells, cells], align_corners=False)
    return F.grid_sample(layers.expand(len(places), *layers.shape), grids, align_corners=False)


def _shares(colors: torch.Tensor, patterns: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Least squares of two colours, for each nudge N and pattern P: the explained share (N, P), the variance (N,).

    colors (N, 3, cells), patterns (P, cells), weight (N, cells).
    """
    weight = weight / weight.sum(1, keepdim=True)
    apart = colors - (colors * weight[:, None]).sum(2, keepdim=True)
    level = patterns - torch.einsum("pc,nc->np", patterns, weight)[..., None]
    variance = torch.einsum("nkc,nc->n", apart.square(), weight)
    together = ((apart * weight[:, None]) @ level.mT).square().sum(1)
    spread = torch.einsum("npc,nc->np", level.square(), weight)
    return together / (spread.clamp(min=1e-6) * (variance[:, None] + DARK)), variance
