"""Odd files: sound ones with bytes changed, and new ones put together from what such files are made of."""
from __future__ import annotations

import io
import json
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from .fuzzed_loaders import Loader, pickled
from .hostile_files import TORCH, archive, number, tensor, unicode
from .memory import peak_memory

SPARE = 64 * 2**20
NUMBERS = (0, 1, -1, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -2**63)
TOKENS = (b"null", b"-1", b"1e999", b"NaN", b"{}", b"[]", b'""', b"[[[[", b"0.5", b"true", b"99999999999999999999",
          b"\\u0000",
          b"\xff\xfe", b"\xef\xbb\xbf", b"\0", b"{}{}", b"\r", b"..", b"/etc/passwd", b"\xe2\x80\xa8", b".", b"R",
          b"h\0", b"]")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool,
          torch.complex64)
PLACES = st.floats(0, 1, exclude_max=True)


# ------------------------------------------------------------------------------------------------ changed files
@st.composite
def changed(draw: Any, seeds: Sequence[bytes]) -> bytes:
    """One of the seeds with a few edits, most of them near its beginning and its end, where structure is."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 5))):
        data = draw(st.sampled_from(_EDITS))(draw, data, seeds)
    return data


def _at(draw: Any, data: bytes) -> int:
    near = draw(st.sampled_from((64, 512, 4_096, len(data))))
    place = int(draw(PLACES) * min(near, len(data)))
    return place if draw(st.booleans()) else max(0, len(data) - 1 - place)


def _flipped(draw: Any, data: bytes, _: Sequence[bytes]) -> bytes:
    at = _at(draw, data)
    return data[:at] + bytes(byte ^ 1 << draw(st.integers(0, 7)) for byte in data[at:at + 1]) + data[at + 1:]


def _truncated(draw: Any, data: bytes, _: Sequence[bytes]) -> bytes:
    return data[:_at(draw, data)]


def _without(draw: Any, data: bytes, _: Sequence[bytes]) -> bytes:
    at = _at(draw, data)
    return data[:at] + data[at + draw(st.integers(1, 64)):]


def _repeated(draw: Any, data: bytes, _: Sequence[bytes]) -> bytes:
    at = _at(draw, data)
    return data[:at] + data[at:at + draw(st.integers(1, 256))] * draw(st.integers(2, 50)) + data[at:]


def _spliced(draw: Any, data: bytes, seeds: Sequence[bytes]) -> bytes:
    other = draw(st.sampled_from(seeds))
    return data[:_at(draw, data)] + other[_at(draw, other):]


def _overwritten(draw: Any, data: bytes, _: Sequence[bytes]) -> bytes:
    at, kind = _at(draw, data), draw(st.sampled_from(("<q", "<i", "<f", "<e", "B")))
    value = draw(st.sampled_from((float("nan"), float("inf"), 0.0, 1e4))) if kind in ("<f", "<e") else draw(
        st.sampled_from(NUMBERS)) % 2**(7 if kind == "B" else 31 if kind == "<i" else 63)
    written = struct.pack(kind, value)
    return data[:at] + written + data[at + len(written):]


def _inserted(draw: Any, data: bytes, _: Sequence[bytes]) -> bytes:
    at = _at(draw, data)
    return data[:at] + draw(st.sampled_from(TOKENS)) * draw(st.sampled_from((1, 1, 2, 1_000))) + data[at:]


def _renumbered(draw: Any, data: bytes, _: Sequence[bytes]) -> bytes:
    """Another number in text, such as a size in a header, which keeps its length where there is room."""
    found = [match.span() for match in re.finditer(rb"\d+", data[:4_096])]
    if not found:
        return data
    start, end = draw(st.sampled_from(found))
    text = str(draw(st.sampled_from(NUMBERS))).encode()
    changed_text = text.rjust(end - start)[:end - start] if draw(st.booleans()) else text
    return data[:start] + changed_text + data[end:]


_EDITS = (_flipped, _truncated, _without, _repeated, _spliced, _overwritten, _inserted, _renumbered)


# ------------------------------------------------------------------------------------------------ made files
def _names(loader: Loader) -> st.SearchStrategy[str]:
    return st.sampled_from(loader.names or ("a",)) | st.text(max_size=6) | st.sampled_from(
        ("x" * 2_000, "a.b", "clip_l", "encoder.layer.999999999.x", "layers.99999.0", "²", "__metadata__"))


@st.composite
def _tensors(draw: Any) -> torch.Tensor:
    shape = draw(st.sampled_from([(), (0,), (1,), (768,), (1, 768), (2, 768), (0, 768), (2, 1280), (1, 1, 768), (4, 4),
                                  (8,),
                                  (1,) * 12]))
    made = torch.full(shape, draw(st.sampled_from((0.0, 1.0, float("nan"), 6e4)))).to(draw(st.sampled_from(DTYPES)))
    how = draw(st.sampled_from(("plain", "plain", "repeated", "turned", "sparse", "meta", "parameter")))
    if how == "repeated":
        return made.expand(draw(st.sampled_from((1, 3, 200, 10**7))), *shape) if len(shape) < 8 else made
    if how == "turned":
        return made.mT if made.ndim > 1 else made
    if how == "sparse" and made.ndim == 2:
        return made.to_sparse()
    if how == "meta":
        return made.to("meta")
    return torch.nn.Parameter(made, requires_grad=False) if how == "parameter" else made


def _contents(loader: Loader) -> st.SearchStrategy[Any]:
    leaves = _tensors() | st.none() | st.integers() | st.text(max_size=4) | st.floats() | st.booleans()
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        _names(loader), inner, max_size=5) | st.tuples(inner, inner), max_leaves=10)


@st.composite
def _saved(draw: Any, loader: Loader) -> bytes:
    content = draw(st.dictionaries(_names(loader), _contents(loader), max_size=5) | _contents(loader))
    if draw(st.integers(0, 9)) == 0 and isinstance(content, dict):
        content["itself"] = content
    return pickled(content, _use_new_zipfile_serialization=draw(st.booleans()))


@st.composite
def _instructions(draw: Any, loader: Loader) -> bytes:
    """An archive with instructions in any order."""
    parts = st.sampled_from([b"}", b"]", b")", b"(", b"u", b"s", b"a", b"e", b"t", b"\x85", b"\x86", b"R", b"\x81",
                             b"b", b"0", b"N",
                             b"q\0", b"h\0", b"2", b"Q", b"ccollections\nOrderedDict\n", b"ctorch\nFloatStorage\n",
                             b"cos\nsystem\n",
                             b"ctorch._utils\n_rebuild_tensor_v2\n", b"\x88", b"\x94",
                             b"r\xff\xff\xff\x7f"]) | st.sampled_from(
        NUMBERS).map(number) | _names(loader).map(unicode) | st.builds(
        tensor, st.just("0"), st.just(768), st.lists(st.sampled_from((0, 1, 4, 768, 2**40)), max_size=3),
        st.lists(st.sampled_from((0, 1, 768, -1, 2**62)), max_size=3), st.sampled_from((0, 1, 767, 2**62)))
    file = io.BytesIO()
    archive(file, TORCH + b"".join(draw(st.lists(parts, max_size=30))) + b".", {"0": bytes(3_072)})
    return file.getvalue()


@st.composite
def _headers(draw: Any, loader: Loader) -> bytes:
    """A safetensors file whose header and bytes need not fit."""
    entries, at = {}, 0
    for name in draw(st.lists(_names(loader), max_size=4)):
        shape = draw(st.lists(st.sampled_from((0, 1, 2, 768, -1, 2**62, 1.5)), max_size=3))
        length = draw(st.sampled_from((0, 4, 3_072, 6_144)))
        entries[name] = {"dtype": draw(st.sampled_from(("F32", "F16", "I64", "F8_E4M3", "C64", "?"))), "shape": shape,
                         "data_offsets": [at, at + length]}
        at += length
    header = json.dumps(draw(st.just(entries) | _json(loader))).encode()
    return struct.pack("<Q", draw(st.sampled_from((len(header), len(header), 2**62, 0)))) + header + bytes(draw(
        st.sampled_from((at, at, at + 1, 10))))


def _json(loader: Loader) -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(NUMBERS)
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        _names(loader), inner, max_size=5), max_leaves=20)


def files(loader: Loader) -> st.SearchStrategy[tuple[str, bytes]]:
    """(ending of the name, contents), two in three of them changed sound ones."""
    every = [data for seeds in loader.seeds.values() for data in seeds]
    ways = [st.tuples(st.just(suffix), changed(seeds)) for suffix, seeds in loader.seeds.items() for _ in range(2)]
    for suffix in loader.seeds:
        if suffix in (".pt", ".bin"):
            ways += [st.tuples(st.just(suffix), made(loader)) for made in (_saved, _instructions)]
        elif suffix == ".safetensors":
            ways.append(st.tuples(st.just(suffix), _headers(loader)))
        elif suffix == ".json":
            ways.append(st.tuples(st.just(suffix), _json(loader).map(lambda value: json.dumps(value).encode())))
        else:
            ways.append(st.tuples(st.just(suffix), st.binary(max_size=200)))
    ways.append(st.tuples(st.sampled_from(sorted(loader.seeds)), changed(every)))
    return st.one_of(ways)


# ------------------------------------------------------------------------------------------------ the property
def check(loader: Loader, folder: Path, suffix: str, data: bytes) -> None:
    """Raises AssertionError unless the loader makes of the file what it promises, or refuses it in one sentence, within
    the memory that goes with its size."""
    path = folder / (loader.place or f"file{suffix}")
    for place, content in {**loader.beside,
                           str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path): data
                           }.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(content)
    with peak_memory() as peak:
        try:
            result = loader.read(path)
        except ValueError as error:
            result, sentence = None, str(error)
            assert type(error) is ValueError, f"raw {type(error).__name__}: {error}"
            assert sentence and "\n" not in sentence and len(sentence) < 1_500, f"no sentence: {sentence[:200]!r}"
            assert sentence[-1] in ".!" and " " in sentence, f"no sentence: {sentence!r}"
    size = len(data) + sum(map(len, loader.beside.values()))
    if loader.bounded:
        assert peak.bytes <= 3 * size + SPARE, f"{peak.bytes} bytes of memory for {size} of files"
    if result is not None:
        loader.holds(result)
