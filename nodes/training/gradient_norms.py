"""How hard each loss pulls at each group of parameters."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .parts.part import AttachedPart


class GradientNorms:
    """Each term's own gradient per parameter group, gathered over the micro-batches of one step."""

    def __init__(self, parts: Sequence[AttachedPart]):
        self.groups = [(group.name, list(group.params), "unet" in part.touches)
                       for part in parts for group in part.groups]
        self.unet_parameters = [p for _, params, unet in self.groups if unet for p in params]
        self.sums: dict[tuple[str, str], list[Tensor | None]] = {}

    def add(self, term: str, outputs: Sequence[Tensor], at_outputs: Sequence[Tensor | None],
            at_unet: Sequence[Tensor | None]) -> None:
        """Adds a term's gradients here and to .grad; those of the text side are given at the text encoder's outputs."""
        pairs = zip(outputs, at_outputs, strict=True)
        used = [(output, gradient) for output, gradient in pairs if gradient is not None]
        text = [p for _, params, unet in self.groups if not unet for p in params]
        found = [None] * len(text)
        if used and text:
            found = torch.autograd.grad([o for o, _ in used], text, [g for _, g in used], retain_graph=True,
                                        allow_unused=True)
        by_parameter = dict(zip(map(id, text + self.unet_parameters), [*found, *at_unet], strict=True))
        for name, params, _ in self.groups:
            sums = self.sums.setdefault((term, name), [None] * len(params))
            for i, p in enumerate(params):
                gradient = by_parameter[id(p)]
                if gradient is not None:
                    before = sums[i]
                    sums[i] = gradient.clone() if before is None else before + gradient
                    p.grad = gradient.clone() if p.grad is None else p.grad.add_(gradient)

    def norms(self) -> dict[str, float]:
        """"term|group" → Euclidean norm of the term's weighted gradient."""
        return {f"{term}|{group}": float(sum(float(g.float().square().sum()) for g in sums if g is not None) ** 0.5)
                for (term, group), sums in self.sums.items()}
