"""Contact sheets: a row a method, and for each subject a column a prompt."""
from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .store import Cell
from .task import Task
from .technique import Method

TILE, GAP, BETWEEN = 96, 2, 14
LABELS, HEADING = 190, 74
SUBJECTS, PROMPTS = 4, 4
GREY = (225, 225, 225)
FONT = 11

Find = Callable[[Method, Task], "Cell | None"]


def write_sheets(folder: Path, methods: Sequence[Method], tasks: Sequence[Task], find: Find) -> list[Path]:
    """sheet-1.png, sheet-2.png, …: four tasks each, the references in the first row; what is missing stays grey."""
    paths = []
    for start in range(0, len(tasks), SUBJECTS):
        paths.append(folder / f"sheet-{start // SUBJECTS + 1}.png")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        sheet(methods, tasks[start:start + SUBJECTS], find).save(paths[-1])
    return paths


def sheet(methods: Sequence[Method], tasks: Sequence[Task], find: Find) -> Image.Image:
    """One sheet of all the tasks. find: the cell of a method and task, if it is there."""
    columns = [_shown(task) for task in tasks]
    width = LABELS + sum(len(shown) * (TILE + GAP) + BETWEEN for shown in columns)
    picture = Image.new("RGB", (width, HEADING + (1 + len(methods)) * (TILE + GAP)), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(FONT)
    for row, name in enumerate(("references", *(method.name for method in methods))):
        pen.text((4, HEADING + row * (TILE + GAP) + TILE // 2 - FONT // 2), name, "black", font)
    left = LABELS
    for task, shown in zip(tasks, columns, strict=True):
        cells = [find(method, task) for method in methods]
        pen.text((left, 2), f"{task.subject}, seed {task.seed}", "black", font)
        for place, number in enumerate(shown):
            x = left + place * (TILE + GAP)
            words = textwrap.fill(task.templates[number].replace("{}", "…"), 17)
            pen.multiline_text((x, 18), words, "black", font, spacing=1)
            _paste(picture, (x, HEADING), task.pictures[place] if place < len(task.pictures) else None)
            for row, cell in enumerate(cells, start=1):
                _paste(picture, (x, HEADING + row * (TILE + GAP)), cell and cell.drawn.pictures.get(number))
        left += len(shown) * (TILE + GAP) + BETWEEN
    return picture


def _shown(task: Task) -> list[int]:
    count = min(PROMPTS, len(task.templates))
    return [i * len(task.templates) // count for i in range(count)]


def _paste(sheet: Image.Image, where: tuple[int, int], picture: Tensor | None) -> None:
    if picture is None:
        tile = Image.new("RGB", (TILE, TILE), GREY)
    else:
        pixels = (picture.movedim(0, -1) * 255).round().numpy().astype(np.uint8)
        tile = Image.fromarray(pixels).resize((TILE, TILE), Image.Resampling.LANCZOS)
    sheet.paste(tile, where)
