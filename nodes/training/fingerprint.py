"""A name for everything a result depends on, the same after a restart."""
from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, Mapping

import torch
from torch import Tensor

SAMPLES_PER_WEIGHT = 32


def fingerprint(*values: Any) -> str:
    """Hexadecimal digest of nested dataclasses, mappings, sequences, tensors and plain values.

    Raises TypeError for anything else: what cannot be named must not be cached by name.
    """
    digest = hashlib.sha256()
    _add(digest, values)
    return digest.hexdigest()


def weights_fingerprint(patcher) -> str:
    """Digest of a ModelPatcher's weights and weight patches (LoRAs), from a sample of the values of each tensor."""
    digest = hashlib.sha256()
    for key, weight in patcher.model.state_dict().items():
        # while a LoRA is loaded the module holds the patched weight and the patcher keeps the original
        original = patcher.backup[key].weight if key in patcher.backup else weight
        _add(digest, (key, tuple(original.shape), _sample(original)))
    for key in sorted(patcher.patches):
        for strength, patch, *rest in patcher.patches[key]:
            _add(digest, (key, float(strength), [_sample(t) for t in _tensors(patch)]))
    return digest.hexdigest()


def _add(digest, value: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"tensor{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif dataclasses.is_dataclass(value):
        _add(digest, (type(value).__name__, {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}))
    elif isinstance(value, Mapping):
        _add(digest, [(str(key), value[key]) for key in sorted(value, key=str)])
    elif isinstance(value, (list, tuple)):
        digest.update(f"[{len(value)}".encode())
        for item in value:
            _add(digest, item)
    elif value is None or isinstance(value, (str, int, float, bool, Path)):
        digest.update(f"{type(value).__name__}:{value};".encode())
    else:
        raise TypeError(f"{type(value).__name__} has no fingerprint")


def _sample(weight: Tensor) -> Tensor:
    flat = weight.detach().reshape(-1)
    return flat[::max(1, flat.numel() // SAMPLES_PER_WEIGHT)][:SAMPLES_PER_WEIGHT].float().cpu()


def _tensors(patch: Any):
    if isinstance(patch, Tensor):
        yield patch
    elif isinstance(patch, (list, tuple)):
        for item in patch:
            yield from _tensors(item)
    elif hasattr(patch, "weights"):
        yield from _tensors(patch.weights)
