"""Encodings of prompts that training does not change, remembered up to a number of bytes."""
from __future__ import annotations

from collections import OrderedDict
from typing import Callable

from ..text.encode import Encoded
from .interfaces import Encode

LARGEST = 256 * 2**20
"""Bytes of all encodings together: 400 prompts of SDXL, 1000 of SD1.x."""


class EncodingCache:
    """Request → encoding; the one that has not been asked for longest goes first when there is no more room."""

    def __init__(self) -> None:
        self._encodings: OrderedDict[Encode, Encoded] = OrderedDict()
        self._bytes = 0

    def get(self, request: Encode, make: Callable[[], Encoded]) -> Encoded:
        """The encoding for `request`; what `make` returns if it is not remembered."""
        if request in self._encodings:
            self._encodings.move_to_end(request)
            return self._encodings[request]
        made = make()
        self._encodings[request] = made
        self._bytes += size_in_bytes(made)
        while self._bytes > LARGEST:
            self._bytes -= size_in_bytes(self._encodings.popitem(last=False)[1])
        return made


def size_in_bytes(encoded: Encoded) -> int:
    """Memory that the tensors of an encoding take."""
    return sum(tensor.nbytes for tensor in (encoded.cond, encoded.pooled) if tensor is not None)
