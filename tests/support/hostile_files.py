"""Files that say what cannot be, as a person may get them: lying sizes, endless containers, packed archives."""
from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import torch

TORCH = b"\x80\x02"


def unicode(text: str) -> bytes:
    """A text as a pickle's instruction."""
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def number(value: int) -> bytes:
    """A number as a pickle's instruction."""
    return pickle.dumps(value, 2)[2:-1]


def numbers(values) -> bytes:
    """A tuple of numbers as instructions."""
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(key: str, count: int, size, stride, offset: int = 0, storage: str = "FloatStorage") -> bytes:
    """A tensor as a pickle's instructions."""
    pid = (
        b"("
        + unicode("storage")
        + f"ctorch\n{storage}\n".encode()
        + unicode(key)
        + unicode("cpu")
        + number(count)
        + b"tQ"
    )
    return (b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + number(offset) + numbers(size) + numbers(stride)
            + b"\x89ccollections\nOrderedDict\n)Rt" + b"R")


def archive(path: Path, pickled: bytes, storages: dict[str, bytes], compression: int = zipfile.ZIP_STORED,
            more: dict[str, bytes] | None = None) -> Path:
    """A torch archive with these instructions and bytes."""
    with zipfile.ZipFile(path, "w", compression) as file:
        parts = {"archive/data.pkl": pickled, **{f"archive/data/{key}": data for key, data in storages.items()},
                 "archive/version": b"3\n", **(more or {})}
        for name, data in parts.items():
            file.writestr(name, data)
    return path


def embedding(path: Path, tensors: bytes, storages: dict[str, bytes], **how) -> Path:
    """An A1111 embedding whose string_to_param has these instructions for its value."""
    pickled = TORCH + b"}(" + unicode("string_to_param") + b"}" + unicode("*") + tensors + b"su."
    return archive(path, pickled, storages, **how)


def safetensors(path: Path, header: dict | bytes, data: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file with this header. length: what it says of the header's length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(shape, begin: int, end: int, dtype: str = "F32") -> dict:
    """One tensor of a safetensors header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def saved(content, path: Path, **how) -> Path:
    """What torch.save writes."""
    torch.save(content, path, **how)
    return path


def bombs(folder: Path) -> dict[str, Path]:
    """Name → an embedding file that a reader without bounds is stopped or emptied by; all are small or hold nothing."""
    row = torch.ones(768).numpy().tobytes()
    deep = TORCH + b"}(" + unicode("string_to_param") + b"}(" + unicode("a") + b"}(" * 20_000
    itself = TORCH + b"}q\1" + unicode("string_to_param") + b"h\1s."
    doubled = TORCH + b"]q\0" + b"".join(b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1])
                                         for i in range(60))
    many = TORCH + b"}(" + unicode("string_to_param") + b"}(" + b"".join(
        unicode(f"w_v{i}") + (tensor("0", 768, (100, 768), (0, 1)) + b"q\x05" if i == 0 else b"h\x05")
        for i in range(9_000)) + b"uu."
    lists = TORCH + b"]" * 8_000_000 + b"."
    directory = io.BytesIO()
    with zipfile.ZipFile(directory, "w") as file:
        for i in range(2_500):
            file.writestr(f"archive/data/{i}{'0' * 1_000}", b"")
    (folder / "directory.pt").write_bytes(directory.getvalue())
    zeros = b"[" + b"0," * 7_000_000 + b"0]"
    return {
        "stride": embedding(folder / "stride.pt", tensor("0", 768, (10**6, 768), (0, 1)), {"0": row}),
        "size": embedding(folder / "size.pt", tensor("0", 768, (2**40, 768), (768, 1)), {"0": row}),
        "overflow": embedding(folder / "overflow.pt", tensor("0", 768, (2**62, 4), (2**62, 1)), {"0": row}),
        "deep": archive(folder / "deep.pt", deep, {}), "itself": archive(folder / "itself.pt", itself, {}),
        "doubled": archive(folder / "doubled.pt", doubled + b".", {}),
        "many names": archive(folder / "many.pt", many, {"0": row}),
        "many lists": archive(folder / "lists.pt", lists, {}),
        "memo": archive(folder / "memo.pt", TORCH + b"]r\xff\xff\xff\x7f.", {}),
        "directory": folder / "directory.pt",
        "packed": embedding(folder / "packed.pt", tensor("0", 30 * 10**6, (1, 768), (768, 1)),
                            {"0": bytes(90_000_000)}, compression=zipfile.ZIP_DEFLATED),
        "header": safetensors(folder / "header.safetensors", {"a": entry((0,), 0, 0)}, length=2**62),
        "zeros": safetensors(folder / "zeros.safetensors", b'{"clip_l": ' + zeros + b"}"),
        "metadata": safetensors(folder / "metadata.safetensors", {
            "__metadata__": {"a": "x" * 40_000_000}, "clip_l": entry((1, 768), 0, 3072)}, row),
        "empties": safetensors(folder / "empties.safetensors", {f"a{i}": entry((0,), 0, 0) for i in range(100_000)}),
    }
