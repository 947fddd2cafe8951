"""Encodings of prompts that training does not change, remembered up to a number of bytes."""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from ..text.encode import Encoded
from .interfaces import Encode

LARGEST = 256 * 2**20
"""Bytes of all encodings together: 400 prompts of SDXL, 1000 of SD1.x."""


class EncodingCache:
    """Request for one prompt → its encoding; the one that has not been asked for longest goes first when there is no
    more room."""

    def __init__(self) -> None:
        self._encodings: OrderedDict[Encode, Encoded] = OrderedDict()
        self._bytes = 0

    def get(self, requests: Sequence[Encode], make: Callable[[Sequence[Encode]], Sequence[Encoded]]) -> list[Encoded]:
        """The encodings for `requests`; `make` returns those that are not remembered, all together."""
        missing = [request for request in dict.fromkeys(requests) if request not in self._encodings]
        for request, made in zip(missing, make(missing) if missing else (), strict=True):
            self._encodings[request] = made
            self._bytes += size_in_bytes(made)
        for request in requests:
            self._encodings.move_to_end(request)
        found = [self._encodings[request] for request in requests]
        while self._bytes > LARGEST:
            self._bytes -= size_in_bytes(self._encodings.popitem(last=False)[1])
        return found


def size_in_bytes(encoded: Encoded) -> int:
    """Memory that the tensors of an encoding take."""
    return sum(tensor.nbytes for tensor in (encoded.cond, encoded.pooled) if tensor is not None)
