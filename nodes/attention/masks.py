"""Binary masks from attention maps, and masks on the grid of a layer."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

MaskMethod = Literal["Otsu", "threshold"]
OTSU, THRESHOLD = get_args(MaskMethod)
BINS = 256
_TIE = 1e-12  # relative; rounding must not decide between thresholds that part the pixels alike


def foreground(maps: Tensor, method: MaskMethod, threshold: float, inside: Tensor | None = None) -> Tensor:
    """Bool (..., h, w): what stands out in each map, by Otsu's threshold or by the one that is given.

    threshold, inside: as for above.
    """
    return otsu(maps, inside) if method == OTSU else above(maps, threshold, inside)


def above(maps: Tensor, threshold: float, inside: Tensor | None = None) -> Tensor:
    """Bool (..., h, w): where maps exceed `threshold` on a scale from their smallest value, 0, to their largest, 1.

    inside: bool, as maps: only these pixels count and can be foreground; None for all. Empty for a constant map.
    """
    inside = torch.ones_like(maps, dtype=torch.bool) if inside is None else inside
    low, high = _range(maps.flatten(-2), inside.flatten(-2))
    return inside & (maps > (low + (high - low) * threshold)[..., None])


def otsu(maps: Tensor, inside: Tensor | None = None) -> Tensor:
    """Bool (..., h, w): where each map exceeds its own Otsu threshold. Empty for a constant map.

    inside: as for above.
    """
    found = maps > otsu_threshold(maps, inside)[..., None, None].to(maps)
    return found if inside is None else found & inside


def otsu_threshold(maps: Tensor, inside: Tensor | None = None) -> Tensor:
    """Otsu's threshold of each map: (...) from (..., h, w). inside: as for above.

    Of the centres of 256 equal bins between smallest and largest value, the first that maximises the variance between
    the two classes w₀ · w₁ · (μ₀ − μ₁)² (Otsu 1979), as scikit-image's threshold_otsu. A constant map's threshold is
    its value.
    """
    # of other devices, such as Apple's and Intel's GPUs, many have no float64
    wide = torch.float64 if maps.device.type in ("cpu", "cuda") else torch.float32
    values = maps.reshape(-1, maps.shape[-2] * maps.shape[-1]).to(wide)
    counted = torch.ones_like(values, dtype=torch.bool) if inside is None else inside.reshape(values.shape)
    low, high = _range(values, counted)
    edges = low + (high - low) / BINS * torch.arange(BINS + 1, device=values.device)
    edges[:, -1:] = high
    bins = (torch.searchsorted(edges, values, right=True) - 1).clamp(0, BINS - 1)
    counts = torch.zeros_like(edges[:, 1:]).scatter_add_(-1, bins, counted.to(wide))
    centres = (edges[:, :-1] + edges[:, 1:]) / 2
    weight, total = counts.cumsum(-1), (counts * centres).cumsum(-1)
    below, rest = weight[:, :-1], weight[:, -1:] - weight[:, :-1]
    between = below * rest * (total[:, :-1] / below - (total[:, -1:] - total[:, :-1]) / rest) ** 2
    best = (between >= between.amax(-1, keepdim=True) * (1 - _TIE)).to(torch.uint8).argmax(-1, keepdim=True)
    return torch.where(high > low, centres.gather(-1, best), low).reshape(maps.shape[:-2])


def on_grid(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask (..., H, W) in 0..1 on a layer's grid (h, w): the covered share of each cell."""
    flat = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    return functional.interpolate(flat, tuple(size), mode="area").reshape(*mask.shape[:-2], *size)


def grid_with(size: Sequence[int], cells: int) -> tuple[int, int]:
    """Height and width of the maps of a layer that sees a latent of `size` as `cells` patches, each side halved as
    often as that takes."""
    height, width = size
    while height * width > cells:
        height, width = -(-height // 2), -(-width // 2)
    return height, width


def _range(values: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest of the counted values (..., n), each (..., 1)."""
    return (values.masked_fill(~counted, torch.inf).amin(-1, keepdim=True),
            values.masked_fill(~counted, -torch.inf).amax(-1, keepdim=True))
