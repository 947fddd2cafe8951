"""Attention maps as coloured pictures, over a picture, and side by side with labels."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

# From the lowest value to the highest, at equal distances.
COLOURS = {"viridis": ("#440154", "#3b528b", "#21918c", "#5ec962", "#fde725"),
           "heat": ("#000000", "#b00000", "#ff6a00", "#ffd500", "#ffffff"),
           "jet": ("#000080", "#0000ff", "#00ffff", "#ffff00", "#ff0000", "#800000"),
           "grey": ("#000000", "#ffffff")}
MARGIN = 8
LABEL_HEIGHT = 22
GRID_WIDTH = 2560
SMALLEST_CELL = 96


def coloured(maps: Tensor, colours: str) -> Tensor:
    """(n, H, W, 3) from maps (n, H, W) in 0..1."""
    table = torch.tensor([[int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)] for colour in COLOURS[colours]])
    place = maps.clamp(0, 1) * (len(table) - 1)
    lower = place.floor().long().clamp_max(len(table) - 2)
    return torch.lerp(table[lower], table[lower + 1], (place - lower)[..., None])


def overlaid(heat: Tensor, pictures: Tensor, strength: float) -> Tensor:
    """Heat (n, H, W, 3) over pictures of the same size: 0 only the pictures, 1 only the heat."""
    return torch.lerp(pictures, heat, strength)


def labelled_grid(cells: Tensor, labels: Sequence[str], columns: int) -> Tensor:
    """One picture (1, H, W, 3) with the cells (n, h, w, 3) row by row and a label above each."""
    height, width = cells.shape[1:3]
    columns = min(columns, len(cells))
    shrink = min(1.0, max(SMALLEST_CELL, GRID_WIDTH // columns) / width)
    width, height = max(1, round(width * shrink)), max(1, round(height * shrink))
    rows = -(-len(cells) // columns)
    page = Image.new("RGB", (MARGIN + columns * (width + MARGIN), MARGIN + rows * (height + LABEL_HEIGHT + MARGIN)))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(14)
    for index, (cell, label) in enumerate(zip(cells, labels, strict=True)):
        x = MARGIN + index % columns * (width + MARGIN)
        y = MARGIN + index // columns * (height + LABEL_HEIGHT + MARGIN)
        draw.text((x, y + 2), _fitting(label, font, width), "white", font)
        picture = Image.fromarray((cell.clamp(0, 1) * 255).round().byte().cpu().numpy())
        page.paste(picture.resize((width, height), Image.Resampling.LANCZOS), (x, y + LABEL_HEIGHT))
    return torch.from_numpy(np.asarray(page).copy()).float()[None] / 255


def _fitting(label: str, font, width: int) -> str:
    """The label, cut with an ellipsis where it would reach into the next cell."""
    if font.getlength(label) <= width:
        return label
    while label and font.getlength(label + "…") > width:
        label = label[:-1]
    return label + "…"
