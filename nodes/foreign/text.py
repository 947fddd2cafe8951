"""Text and JSON that others wrote."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .opened import Refused, opened

MOST_STRUCTURE = 2 * 2**20  # bytes of JSON outside of its texts, of which each may become 25 in memory
MOST_TEXTS = 200_000
LONGEST_NAME = 120
LONGEST_PATH = 400


def read_text(path: Path, most: int) -> str:
    """A file's text, without a mark of its encoding in front. most: bytes that it may have.

    Raises ValueError with one sentence if it is larger, or no text in UTF-8.
    """
    path = Path(path)
    try:
        with opened(path) as (file, size):
            if size > most:
                raise Refused(f"has {readable_size(size)}, more than the {readable_size(most)} that are read; make it "
                              "shorter")
            data = file.read(size)
    except Refused as error:
        raise ValueError(f"{shown_name(path.name)} {error}.") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{shown_name(path.name)} is not a text file in UTF-8; save it as plain UTF-8 "
                         "text.") from error
    if "\0" in text:
        raise ValueError(f"{shown_name(path.name)} holds characters that no text has (code 0); save it as plain UTF-8 "
                         "text.")
    return text


def parse_json(data: bytes) -> Any:
    """What JSON in UTF-8 says. Raises ValueError if it is none, names a thing twice, or is built to fill the memory."""
    plain = data.replace(rb"\\", b"").replace(rb"\"", b"")
    if plain.count(b'"') > 2 * MOST_TEXTS or sum(map(len, plain.split(b'"')[::2])) > MOST_STRUCTURE:
        raise ValueError("it has too many entries")
    del plain
    try:
        return json.loads(data, object_pairs_hook=_without_doubles)
    except RecursionError as error:
        raise ValueError("its lists are nested too deep") from error


def short(text: str, most: int = 80) -> str:
    """What a file or a name says, for a sentence: at most `most` letters, what cannot be printed (line breaks, bytes
    that are no text) as �."""
    readable = "".join(letter if letter.isprintable() else "�" for letter in text[:most + 1])
    return readable if len(readable) <= most else f"{readable[:most - 1]}…"


def shown_name(name: str) -> str:
    """A file's or folder's name as it can stand in a sentence, see `short`."""
    return short(name, LONGEST_NAME)


def shown_path(path: Path) -> str:
    """The same of a whole path."""
    return short(str(path), LONGEST_PATH)


def readable_size(size: int) -> str:
    """Bytes as a person reads them: "1.6 KB"."""
    left = float(size)
    for unit in ("bytes", "KB", "MB"):
        if left < 999.5:
            return f"{left:.3g} {unit}"
        left /= 1000
    return f"{left:.4g} GB"


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    known = dict(pairs)
    if len(known) != len(pairs):
        raise ValueError("it names a thing twice")
    return known
