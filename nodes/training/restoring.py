"""Tensors of a saved state, looked at before they take the place of what is trained."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor


def matching(state: Mapping[str, Tensor], name: str, shape: Sequence[int]) -> Tensor:
    """The tensor of that name. Raises ValueError if there is none, or one of another shape, or of whole numbers."""
    tensor = state.get(name)
    if tensor is None or tensor.shape != tuple(shape) or not tensor.is_floating_point():
        raise mismatch(name)
    return tensor


def mismatch(name: str) -> ValueError:
    """The sentence for a state that is another training's."""
    return ValueError(f"The saved state does not fit what is trained (look at {name[:100]}); set resume to start over.")
