"""What a run's state and report say, checked before it is used: both are files that may be damaged, edited or foreign.

They are read record by record: a list that was built to fill the memory ends at its first odd entry.
"""
from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any

from torch import Tensor

from ..foreign.safetensors_file import MOST_OWN_HEADER
from ..weight_files import check_numbers, damaged, read_metadata, read_weights

KIND = "saved state"
MOST_BYTES = 64 * 2**20  # of a report
MOST_RECORDS = 100_000  # the most steps that Train takes
MOST_LETTERS = 2**16  # of one record
_USUAL_LETTERS = 2**11
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()

Check = Callable[[Any], bool]


def read_state(path: Path, key: str, most: int) -> tuple[dict[str, Tensor], int, list[dict]] | None:
    """Tensors, steps done and history of a saved state; None if it is of another run than `key`, or of more than `most`
    steps. Raises ValueError with one sentence if it is damaged."""
    about = read_metadata(path, KIND, MOST_OWN_HEADER)
    if about.get("fingerprint") != key:
        return None
    if not re.fullmatch("[0-9]{1,9}", about.get("step", "")):
        raise damaged(path, KIND)
    if int(about["step"]) > most:
        return None
    tensors, about = read_weights(path, KIND, MOST_OWN_HEADER)
    check_numbers(path, ((name, tensor) for name, tensor in tensors.items() if name.startswith("part.")))
    try:
        return tensors, int(about["step"]), parse_history(about["history"])
    except (KeyError, ValueError) as error:
        raise damaged(path, KIND) from error


def step_of_state(path: Path, key: str) -> int:
    """The step that a saved state of the run `key` is of, without reading its tensors; 0 if it is of another run, or
    damaged."""
    try:
        about = read_metadata(path, KIND, MOST_OWN_HEADER)
    except ValueError:
        return 0
    step = about.get("step", "")
    return int(step) if about.get("fingerprint") == key and re.fullmatch("[0-9]{1,9}", step) else 0


def parse_history(text: str) -> list[dict]:
    """One record per step, as the loop makes them, steps in order. Raises ValueError if the text says anything else."""
    history, at = _list(text, _after_space(text, 0), _is_step)
    if _after_space(text, at) != len(text) or any(a["step"] >= b["step"] for a, b in itertools.pairwise(history)):
        raise ValueError("the history is not one record per step")
    return history


def parse_report(text: str, empty: dict[str, Any]) -> dict[str, Any]:
    """The report in `text`, with what `empty` holds for what it does not say. Raises ValueError if it is no report."""
    report, at = dict(empty), _after(text, 0, "{")
    while text[at:at + 1] != "}":
        name, at = _value(text, at)
        at = _after(text, at, ":")
        report[name], at = _list(text, at, _ENTRIES[name]) if name in _ENTRIES else _value(text, at)
        at = _next(text, at, "}")
    if not all(isinstance(name, str) for name in report) or any(
            type(report[name]) is not type(value) for name, value in empty.items()):
        raise ValueError("this is no report of a run")
    return report


def _list(text: str, at: int, check: Check) -> tuple[list, int]:
    entries, at = [], _after(text, at, "[")
    while text[at:at + 1] != "]":
        entry, at = _value(text, at)
        if not check(entry) or len(entries) == MOST_RECORDS:
            raise ValueError("a record is not as a run writes it")
        entries.append(entry)
        at = _next(text, at, "]")
    return entries, at + 1


def _value(text: str, at: int) -> tuple[Any, int]:
    """A value that ends soon, and where."""
    for most in (_USUAL_LETTERS, MOST_LETTERS):
        part = text[at:at + most]
        try:
            value, end = _DECODER.raw_decode(part)
        except (ValueError, RecursionError):
            continue
        if end < len(part) or at + end == len(text):
            return value, _after_space(text, at + end)
    raise ValueError("a record is too long or no JSON")


def _after(text: str, at: int, sign: str) -> int:
    at = _after_space(text, at)
    if text[at:at + 1] != sign:
        raise ValueError(f"a {sign} is missing")
    return _after_space(text, at + 1)


def _next(text: str, at: int, end: str) -> int:
    """Where the next entry or the end is."""
    return at if text[at:at + 1] == end else _after(text, at, ",")


def _after_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return at if space is None else space.end()


# ------------------------------------------------------------------------------------------------ entries
def _is_step(record: Any) -> bool:
    return (isinstance(record, dict) and _is_number_of_step(record.get("step")) and "loss" in record
            and isinstance(record.get("parts"), dict) and all(map(_is_measured, record.values())))


def _is_measured(value: Any) -> bool:
    """A number, or numbers by name; None where it was not finite."""
    return all(map(_is_number, value.values())) if isinstance(value, dict) else _is_number(value)


def _is_number(value: Any) -> bool:
    return value is None or type(value) in (int, float) and -1e300 < value < 1e300


def _is_number_of_step(value: Any) -> bool:
    return type(value) is int and 0 <= value < 10**9


def _is_saved(entry: Any) -> bool:
    return (isinstance(entry, dict) and _is_number_of_step(entry.get("step"))
            and all(isinstance(entry.get(name), list) for name in ("embeddings", "files"))
            and isinstance(entry.get("part_files", []), list)
            and all(isinstance(text, str) for text in entry["embeddings"])
            and all(map(_is_place, [*entry["files"], *entry.get("part_files", [])])))


def _is_place(place: Any) -> bool:
    """A path, or a file by the kind of its folder and a name that does not lead out of it."""
    if not isinstance(place, dict):
        return isinstance(place, str)
    kind, name = place.get("kind"), place.get("name")
    if not isinstance(kind, str) or not isinstance(name, str):
        return False
    parts = PureWindowsPath(name)
    return not kind or not (parts.drive or parts.root or ".." in parts.parts)


def _is_preview(entry: Any) -> bool:
    return (isinstance(entry, dict) and _is_image(entry.get("image")) and _is_number_of_step(entry.get("step"))
            and isinstance(entry.get("prompt", ""), str) and _is_number_of_step(entry.get("noise", 0)))


def _is_image(image: Any) -> bool:
    return (isinstance(image, dict) and all(isinstance(part, str) for part in image.values())
            and re.fullmatch(r"[\w.-]+", image.get("filename", "")) is not None)


_ENTRIES: dict[str, Check] = {"history": _is_step, "saved": _is_saved, "previews": _is_preview,
                              "photographs": _is_image}
