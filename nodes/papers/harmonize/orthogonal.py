"""Equation 3: the part of a visual embedding that is orthogonal to the text."""
from __future__ import annotations

import scipy.linalg
import torch
from torch import Tensor
from torch.nn import functional

TOLERANCE = 1e-6  # of a token's length; float32 tokens that depend on each other come apart by about 1e-7


def text_basis(tokens: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """Orthonormal basis t̄ (r, d) of the span of `tokens` (N, d), float64 on the CPU; r is its rank.

    A QR decomposition with pivoting takes the place of the Gram–Schmidt process: the projection depends on the span
    alone, not on the order. A token is left out if less than `tolerance` of its length is new beside the others.
    """
    directions = functional.normalize(tokens.detach().to("cpu", torch.float64), dim=-1)
    if not directions.any():
        return directions[:0]
    q, r, _ = scipy.linalg.qr(directions.T.numpy(), mode="economic", pivoting=True)
    rank = int((abs(r.diagonal()) > tolerance).sum())
    return torch.from_numpy(q[:, :rank].T.copy())


def parallel_part(visual: Tensor, basis: Tensor) -> Tensor:
    """v∥ (..., d) of visual tokens v (..., d): their projection on the span of a `basis` (r, d), in its precision."""
    return visual.to(basis) @ basis.T @ basis


def orthogonalised(visual: Tensor, basis: Tensor, strength: float = 1.0) -> Tensor:
    """v − strength · v∥, with the shape, type and device of `visual` (..., d).

    strength: 1 gives v⊥ of Eq. 3, 0 gives v itself, bit for bit.
    """
    if strength == 0 or not len(basis):
        return visual
    return (visual.to(basis) - strength * parallel_part(visual, basis)).to(visual)


def parallel_share(visual: Tensor, basis: Tensor) -> float:
    """Share of the squared length of all visual tokens (..., d) that lies in the span of the basis, 0 to 1."""
    length = float(visual.to(basis).square().sum())
    return float(parallel_part(visual, basis).square().sum()) / length if length else 0.0
