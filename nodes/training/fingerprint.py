"""A name for everything a result depends on: the same after a restart, in another folder and on another device."""
from __future__ import annotations

import dataclasses
import enum
import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import torch
from torch import Tensor

LARGEST_WHOLE = 2**20  # bytes of a tensor that go into its digest as they are
NUMBERS_AT_ONCE = 2**20
NUMBER = 8  # bytes of an int64
DEEPEST = 60


def fingerprint(*values: Any) -> str:
    """Hexadecimal digest of nested dataclasses, mappings, sequences, tensors and plain values.

    Equal numbers are the same, whatever their type; a list is the same as a tuple. Fields that a class names in its
    attribute NOT_IN_KEY are left out.
    Raises TypeError for anything else: what cannot be named must not be cached by name.
    """
    return Digests(_refuse).of(values).hex()


def counting(value: Any, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes without those that the object's class names in NOT_IN_KEY: they change no result."""
    return {name: each for name, each in attributes.items() if name not in getattr(type(value), "NOT_IN_KEY", ())}


def _refuse(value: Any) -> Any:
    raise TypeError(f"{type(value).__name__} has no fingerprint")


class Digests:
    """Digests of values that hold each other; each is computed once.

    describe: gives values in place of one that is neither plain nor made of others.
    """

    def __init__(self, describe: Callable[[Any], Any]):
        self._describe, self._depth = describe, 0
        self._known: dict[int, tuple[Any, bytes]] = {}
        self._sums = _WeightedSums()

    def of(self, value: Any) -> bytes:
        """32 bytes."""
        plain = _plain(value)
        if plain is not None:
            return _sha(plain)
        if id(value) not in self._known:
            self._known[id(value)] = value, _sha(b"within itself")
            self._depth += 1
            found = self._of_content(value) if self._depth <= DEEPEST else _sha(b"too deep")
            self._depth -= 1
            self._known[id(value)] = value, found
        return self._known[id(value)][1]

    def _of_content(self, value: Any) -> bytes:
        if isinstance(value, Tensor):
            return self._of_tensor(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {f.name: getattr(value, f.name, None) for f in dataclasses.fields(value)}
            return _joined(type(value).__name__, [self.of(counting(value, fields))])
        if isinstance(value, Mapping):
            return _joined("mapping", sorted(self.of(pair) for pair in value.items()))
        if isinstance(value, (set, frozenset)):
            return _joined("set", sorted(map(self.of, value)))
        if isinstance(value, (list, tuple, deque)):
            return _joined("sequence", map(self.of, value))
        described = self._describe(value)
        return self.of(None) if described is None else _joined("described", [self.of(described)])

    def _of_tensor(self, tensor: Tensor) -> bytes:
        head = f"{tuple(tensor.shape)} {tensor.dtype}"
        if tensor.device.type == "meta":
            return _sha(head.encode())
        if type(tensor) in (Tensor, torch.nn.Parameter):
            return _joined(head, [_sha(self._sums.of(tensor.detach()))])
        return _joined(f"{type(tensor).__qualname__} {head}", self._inside(tensor))

    def _inside(self, tensor: Tensor) -> list[bytes]:
        """Of a quantised tensor, or another kind that is no plain memory, the memory and attributes it is made of."""
        try:
            memory = _sha(self._sums.of(tensor.detach().as_subclass(Tensor)))
        except (RuntimeError, TypeError, NotImplementedError):
            memory = b""
        return [memory, self.of(getattr(tensor, "__dict__", {}))]


class _WeightedSums:
    """Digests of tensors where they are.

    Of a large one Σ wᵢ·xᵢ mod 2⁶⁴ for each 8 MiB, where xᵢ are its bytes as 64-bit integers and wᵢ pseudo-random odd
    numbers: a change in one place always gives another sum, other changes the same one with a chance of about 2⁻⁶⁴. It
    is exact in any order of summation and several times as fast as a cryptographic hash.
    """

    def __init__(self):
        self._factors: dict[torch.device, Tensor] = {}

    def of(self, tensor: Tensor) -> bytes:
        """Bytes that depend on every byte of the tensor."""
        tensor = tensor if tensor.device.type in ("cpu", "cuda") else tensor.cpu()
        stored = tensor.contiguous().reshape(-1)
        if stored.nbytes <= LARGEST_WHOLE:
            return stored.cpu().view(torch.uint8).numpy().tobytes()
        offset = stored.storage_offset() * stored.element_size()
        aligned = stored.data_ptr() % NUMBER == 0 and offset % NUMBER == 0
        stored = (stored if aligned else stored.clone()).view(torch.uint8)
        whole = len(stored) // NUMBER * NUMBER
        sums = [self._sum(part) for part in stored[:whole].view(torch.int64).split(NUMBERS_AT_ONCE)]
        return torch.stack(sums).cpu().numpy().tobytes() + stored[whole:].cpu().numpy().tobytes()

    def _sum(self, numbers: Tensor) -> Tensor:
        if numbers.device not in self._factors:
            self._factors[numbers.device] = _odd_numbers(NUMBERS_AT_ONCE).to(numbers.device)
        factors = self._factors[numbers.device][:len(numbers)]
        return torch.dot(numbers, factors) if numbers.device.type == "cpu" else (numbers * factors).sum()


def _odd_numbers(count: int) -> Tensor:
    """(count,) int64, pseudo-random: SplitMix64 from 0 on, made odd."""
    mixed = torch.arange(1, count + 1, dtype=torch.int64) * -0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        high = (mixed >> shift) & (2**(64 - shift) - 1)
        mixed = (mixed ^ high) * factor
    return mixed | 1


def _plain(value: Any) -> bytes | None:
    """Bytes of a value without parts, None for any other."""
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}".encode()
    if value is None or isinstance(value, bool):
        return f"constant {value}".encode()
    if isinstance(value, (int, float, np.integer, np.floating)):
        return f"number {_number(value)}".encode()
    if isinstance(value, (str, Path)):
        return f"text {_within_home(str(value))}".encode("utf-8", "surrogatepass")
    if isinstance(value, bytes):
        return b"bytes " + value
    return f"{value}".encode() if isinstance(value, torch.dtype) else None


def _number(value: float) -> str:
    whole = isinstance(value, (int, np.integer)) or math.isfinite(value) and value == int(value)
    return str(int(value)) if whole else repr(float(value))


def _within_home(text: str) -> str:
    """A path as it is seen from ComfyUI's folder, so that moving ComfyUI changes nothing."""
    home = folder_paths.base_path
    return text[len(home):].replace("\\", "/") if text.startswith(home) else text


def _joined(kind: str, digests: Iterable[bytes]) -> bytes:
    return _sha(_sha(kind.encode()) + b"".join(digests))


def _sha(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
