"""Cells on the disk: what a method drew for a task, and what the oracle said of it, each in a file named by all that it
depends on."""
from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

Verdict = Mapping[int, Mapping[str, float]]
_PICTURES, _LEARNED = "picture.", "learned."


@dataclass(frozen=True)
class Drawn:
    """What a method made of a task.

    pictures: number of the template -> (3, 128, 128) in 0..1; a method need not draw all of them.
    learned: what a method that continues this one needs. figures: what else is worth knowing, averaged in the report.
    """

    pictures: Mapping[int, Tensor]
    learned: Mapping[str, Tensor] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One method on one subject with one seed.

    verdict: number of the template -> measure -> value.
    """

    drawn: Drawn
    verdict: Verdict

    @property
    def failed(self) -> tuple[int, ...]:
        """Templates whose picture misses something that the prompt asks for."""
        return tuple(number for number, values in self.verdict.items() if values["text"] < 1)


class Store:
    """A folder of cells, readable names first: cells/<method>/<subject>-<seed>-<key>.safetensors and, beside it,
    <key>-<judge's key>.json. Every file is written whole or not at all."""

    def __init__(self, folder: Path):
        self.folder = folder / "cells"

    def drawn(self, name: tuple[str, str, int], key: str) -> Drawn | None:
        """What `save_drawn` kept under this key."""
        path = self._path(name, key)
        if not path.is_file():
            return None
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            figures = json.loads(file.metadata()["figures"])
        pictures = {int(name.removeprefix(_PICTURES)): picture.float() / 255
                    for name, picture in tensors.items() if name.startswith(_PICTURES)}
        learned = {name.removeprefix(_LEARNED): t for name, t in tensors.items() if name.startswith(_LEARNED)}
        return Drawn(dict(sorted(pictures.items())), learned, figures)

    def save_drawn(self, name: tuple[str, str, int], key: str, drawn: Drawn) -> Drawn:
        """Keeps it, pictures with 8 bits; returns what `drawn` will from now on."""
        from personalize.nodes.files import write_safetensors

        tensors = {f"{_PICTURES}{number}": (255 * picture).round().to(torch.uint8)
                   for number, picture in drawn.pictures.items()}
        tensors |= {f"{_LEARNED}{name}": tensor for name, tensor in drawn.learned.items()}
        write_safetensors(self._path(name, key), tensors, {"figures": json.dumps(dict(drawn.figures))})
        return self.drawn(name, key)

    def verdict(self, name: tuple[str, str, int], key: str, judge: str) -> Verdict | None:
        """What `save_verdict` kept under these keys."""
        path = self._verdict_path(name, key, judge)
        if not path.is_file():
            return None
        return {int(number): values for number, values in json.loads(path.read_text("utf-8")).items()}

    def save_verdict(self, name: tuple[str, str, int], key: str, judge: str, verdict: Verdict) -> Verdict:
        """Keeps it and returns it."""
        from personalize.nodes.files import write_text

        write_text(self._verdict_path(name, key, judge), json.dumps(verdict))
        return verdict

    def _path(self, name: tuple[str, str, int], key: str) -> Path:
        method, subject, seed = name
        return self.folder / re.sub(r"[^\w.+-]", "-", method) / f"{subject}-{seed}-{key[:12]}.safetensors"

    def _verdict_path(self, name: tuple[str, str, int], key: str, judge: str) -> Path:
        return self._path(name, key).with_suffix(f".{judge[:8]}.json")
