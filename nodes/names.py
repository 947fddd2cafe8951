"""File names made of what a person typed."""
from __future__ import annotations

import re
import unicodedata
from pathlib import PureWindowsPath

from .foreign.text import short, shown_name

LONGEST_NAME = 200  # bytes in UTF-8: file systems take 255, and numbers, extensions and ".tmp" are added
ROOM_FOR_STEP = 40  # bytes that a run adds to what a person typed: a digest of 8 letters, a step
_NOT_IN_NAMES = re.compile(r"[^\w.+-]+")
_RESERVED_BY_WINDOWS = re.compile(r"^(con|prn|aux|nul|(?:com|lpt)[\d¹²³])(?=\.|$)", re.IGNORECASE)


def safe_name(name: str, what: str, room: int = 0) -> str:
    """`name` as a relative path that every file system and ComfyUI's prompts accept, e.g. "dogs/my-dog".

    White space, brackets, commas, colons and the like become "-"; letters are composed (Unicode NFC), since some
    systems store them so and others do not; "con" and other names that Windows keeps for itself get a "_".
    what: the input's name, for messages. room: bytes that will be added to the name.
    Raises ValueError if nothing is left, if a part is longer than 200 bytes less `room`, or if the name is absolute or
    climbs up with "..".
    """
    parts = unicodedata.normalize("NFC", name).strip().replace("\\", "/").split("/")
    if PureWindowsPath(name.strip()).drive or (len(parts) > 1 and any(not part.strip(" .") for part in parts)):
        raise ValueError(f"{what} '{shown_name(name)}' would leave ComfyUI's folder; write a plain name such as "
                         "my-dog or dogs/my-dog, without a drive, without '..' and without a slash at its ends.")
    tidy = [_RESERVED_BY_WINDOWS.sub(r"\1_", _NOT_IN_NAMES.sub("-", part).strip("-."), count=1) for part in parts]
    if not all(tidy):
        raise ValueError(f"{what} '{shown_name(name)}' has no letter or digit; write a file name such as my-dog.")
    longest = LONGEST_NAME - room
    if max(len(part.encode("utf-8")) for part in tidy) > longest:
        raise ValueError(f"{what} '{short(name, 20)}' is too long for a file name; write at most {longest} letters, or "
                         f"{longest // 3} of a script such as kanji.")
    return "/".join(tidy)


def folded(name: str) -> str:
    """What two names share if a file system may take one for the other: it may ignore case and how letters are
    composed."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())
