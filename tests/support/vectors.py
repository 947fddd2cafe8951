"""Random vectors as files of learned words hold them."""
from __future__ import annotations

import torch
from torch import Tensor


def rows(count: int, width: int) -> Tensor:
    """(count, width), always the same for these numbers and others for any others."""
    return 0.1 * torch.randn(count, width, generator=torch.Generator().manual_seed(count * width))
