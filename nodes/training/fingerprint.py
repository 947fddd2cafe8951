"""A name for everything a result depends on, the same after a restart."""
from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, Mapping

import torch
from torch import Tensor

from comfy.model_patcher import ModelPatcher

SAMPLES_PER_WEIGHT = 32
DESCRIBED_DEPTH = 6


def fingerprint(*values: Any) -> str:
    """Hexadecimal digest of nested dataclasses, mappings, sequences, tensors and plain values.

    Raises TypeError for anything else: what cannot be named must not be cached by name.
    """
    digest = hashlib.sha256()
    _add(digest, values)
    return digest.hexdigest()


def weights_fingerprint(patcher) -> str:
    """Digest of a ModelPatcher's weights, weight patches (LoRAs) and other packs' patches, from a sample of the values of
    each tensor."""
    digest = hashlib.sha256()
    _add(digest, [_described(part) for part in (patcher.model_options, patcher.object_patches, patcher.wrappers)])
    for key, weight in patcher.model.state_dict().items():
        # while a LoRA is loaded the module holds the patched weight and the patcher keeps the original
        original = patcher.backup[key].weight if key in patcher.backup else weight
        _add(digest, (key, tuple(original.shape), _sample(original)))
    for key in sorted(patcher.patches):
        for strength, patch, *_ in patcher.patches[key]:
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


def _described(value: Any, depth: int = DESCRIBED_DEPTH) -> Any:
    """What can be told apart of a patch: names of functions, what they enclose, attributes of objects."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, Tensor):
        return tuple(value.shape), _sample(value)
    if depth == 0 or isinstance(value, (torch.nn.Module, ModelPatcher)):
        return type(value).__qualname__
    if isinstance(value, Mapping):
        return {str(key): _described(item, depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_described(item, depth - 1) for item in value]
    enclosed = [_described(cell.cell_contents, depth - 1) for cell in getattr(value, "__closure__", None) or ()]
    attributes = _described(getattr(value, "__dict__", {}), depth - 1)
    named = value if hasattr(value, "__qualname__") else type(value)
    return named.__module__, named.__qualname__, enclosed, attributes


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
