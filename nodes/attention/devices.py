"""Several GPUs for one picture: core's MultiGPU nodes give each a copy of the MODEL and a part of the conditionings."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

MULTIGPU = "multigpu"  # core's key of the copies among a MODEL's additional models


def device_of(options: Mapping[str, Any]) -> torch.device | None:
    """The GPU that the running call was given to; None where one GPU gets them all. options: transformer_options."""
    return options.get("multigpu_thread_device")


def copies_by_device(guider) -> Mapping[torch.device, Any]:
    """The MODEL of each GPU in a sampling run; empty where there is one."""
    return guider.model_options.get("multigpu_clones", {})
