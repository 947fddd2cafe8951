"""Remembered encodings of prompts: the same objects while there is room, and never more bytes than stated."""
from __future__ import annotations

import torch

from personalize.nodes.text.encode import Encoded
from personalize.nodes.training import encoding_cache
from personalize.nodes.training.encoding_cache import EncodingCache
from personalize.nodes.training.interfaces import Encode

KILOBYTE = 1024


def made(kilobytes: int) -> Encoded:
    half = torch.zeros(kilobytes * KILOBYTE // 8)
    return Encoded((), half.reshape(1, 1, -1), half.reshape(1, -1))


def test_bytes_are_bounded_whatever_the_number(monkeypatch):
    monkeypatch.setattr(encoding_cache, "LARGEST", 10 * KILOBYTE)
    cache, calls = EncodingCache(), []

    def ask(name: str, kilobytes: int) -> Encoded:
        def make() -> Encoded:
            calls.append(name)
            return made(kilobytes)

        return cache.get(Encode((name,)), make)

    first = ask("a", 4)
    assert ask("b", 4) is ask("b", 4) and ask("a", 4) is first and calls == ["a", "b"]
    ask("c", 4)  # 12 KB: b has not been asked for longest
    assert ask("a", 4) is first and calls == ["a", "b", "c"]
    ask("b", 4)
    assert calls == ["a", "b", "c", "b"]
    assert ask("alone too large", 20).cond.numel() > 0
    for number in range(1000):
        ask(str(number), 1)
        kept = sum(encoding_cache.size_in_bytes(each) for each in cache._encodings.values())
        assert kept <= 10 * KILOBYTE
    assert len(cache._encodings) == 10


def test_the_bound_is_what_it_says():
    """A prompt of SDXL is 77 × 2048 numbers and a pooled row of 1280; of SD1.x 77 × 768."""
    assert encoding_cache.LARGEST // (4 * (77 * 2048 + 1280)) >= 400 and encoding_cache.LARGEST // (4 * 77 * 768) >= 1000
