"""Which embedding files prompts name, for caches: what a prompt means changes with them."""
from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..files import version_of
from .embedding_files import find_embedding
from .placeholders import EMBEDDING

_NAME = re.compile(rf"{EMBEDDING}\s*([^\s():]+)")


LONGEST_TEXT = 2**23  # bytes of a text file that is searched


def embedding_versions(*prompts: str | Path | Sequence[str | None] | None) -> str:
    """Text that changes when a file does that a prompt, or a text file of them, names as embedding:name; "" if none is.

    None stands for a prompt that comes by a link and is not known yet.
    """
    given = [each for one in prompts for each in ([one] if isinstance(one, (str, Path)) else one or ())]
    texts = [_content(each) if isinstance(each, Path) else each for each in given if each]
    names = {name.rstrip(",.;!?]") for text in texts for name in _NAME.findall(text)}
    return "\n".join(_version(name) for name in sorted(names))


def _content(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(LONGEST_TEXT).decode("utf-8", "ignore")
    except OSError:
        return ""


def _version(name: str) -> str:
    try:
        return version_of(find_embedding(name))
    except ValueError:
        return f"no {name}"
