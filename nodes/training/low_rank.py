"""Differences of whole weights as a LoRA: smaller, and nearly the same."""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

DIFFERENCE = ".diff"


@dataclass(frozen=True)
class Reduced:
    """A LoRA file's tensors, and what was lost: the length of all that is left out over that of all differences, and
    the same for the layer that lost most."""

    weights: Mapping[str, Tensor]
    lost: float
    worst: float
    worst_layer: str


def reduce_rank(weights: Mapping[str, Tensor], rank: int) -> Reduced:
    """Every matrix or kernel `<layer>.diff` as `<layer>.lora_up/lora_down.weight` and `.alpha` of this rank or less.

    The nearest matrix of a rank, by its largest singular values (Eckart, Young 1936). Differences of biases and norms,
    and layers that are small enough, stay as they are. Raises ValueError if there is no difference of a weight.
    """
    kept, lost, whole, shares = dict[str, Tensor](), 0.0, 0.0, dict[str, float]()
    for name, tensor in weights.items():
        if not name.endswith(DIFFERENCE):
            kept[name] = tensor
            continue
        size = float(tensor.double().square().sum())
        whole += size
        if tensor.ndim < 2 or not _is_smaller(tensor, rank):
            kept[name] = tensor
            continue
        layer = name.removesuffix(DIFFERENCE)
        up, down = _factors(tensor, rank)
        error = float((up.flatten(1).double() @ down.flatten(1).double() - tensor.flatten(1).double()).square().sum())
        lost += error
        shares[layer] = math.sqrt(error / size) if size else 0.0
        kept |= {f"{layer}.lora_up.weight": up, f"{layer}.lora_down.weight": down,
                 f"{layer}.alpha": torch.tensor(float(up.shape[1]))}
    if not shares:
        raise ValueError("There is no difference of a weight that a LoRA of this rank would make smaller; connect what "
                         "Train U-Net or Train Key/Value has trained, or write a smaller rank.")
    worst = max(shares, key=lambda layer: shares[layer])
    return Reduced(kept, math.sqrt(lost / whole) if whole else 0.0, shares[worst], worst)


def _is_smaller(tensor: Tensor, rank: int) -> bool:
    rows, columns = tensor.flatten(1).shape
    return rank * (rows + columns) < rows * columns


def _factors(tensor: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """up (out, r, 1 …) and down (r, in, …), whose product is the difference, each with half of the strength."""
    left, strengths, right = torch.linalg.svd(tensor.flatten(1).float(), full_matrices=False)
    root = strengths[:rank].sqrt()
    up, down = left[:, :rank] * root, root[:, None] * right[:rank]
    ones = (1,) * (tensor.ndim - 2)
    return up.reshape(*up.shape, *ones).contiguous(), down.reshape(rank, *tensor.shape[1:]).contiguous()
