"""How fast the device computes, as a short computation shows."""
from __future__ import annotations

import functools
import time

import comfy.model_management as mm
import torch

SHARE_OF_PRODUCT = 0.5  # that a denoiser reaches of a large matrix product's speed
SIDES = {"cpu": 512}
SIDE = 4096


def speed_of(dtype: torch.dtype) -> float:
    """FLOPs a second that a training reaches on the device, computing in `dtype`."""
    return SHARE_OF_PRODUCT * _product(mm.get_torch_device(), dtype)


@functools.cache
def _product(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs a second of a large matrix product, the best of three."""
    side = SIDES.get(device.type, SIDE)
    one = torch.ones(side, side, device=device, dtype=dtype)
    times = []
    for _ in range(4):  # the first one warms up
        started = time.perf_counter()
        float((one @ one)[0, 0])  # waits for the device
        times.append(time.perf_counter() - started)
    return 2 * side**3 / min(times[1:])
