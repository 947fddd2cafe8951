"""Captions of pictures: read from files beside them, as kohya's and AUTOMATIC1111's trainers keep them, or typed."""
from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..foreign.text import read_text, shown_name
from ..text.placeholders import Placeholders, filled
from ..text.prompts import FILEWORDS, NAME, SLOT

LARGEST_FILE = 2**16  # bytes; a prompt of CLIP holds some hundred words


def read_caption(path: Path | None) -> str:
    """Text of a caption file, on one line; "" for no file. Raises ValueError if it is too large or no text."""
    if path is None:
        return ""
    try:
        return " ".join(read_text(path, LARGEST_FILE).split())
    except OSError as error:
        raise ValueError(
            f"Caption file {shown_name(path.name)} cannot be read ({error.strerror}); remove it, or let ComfyUI "
            "read it."
        ) from error


def captions_for(names: Sequence[str], beside: Sequence[str], texts: Sequence[str], placeholder: str) -> list[str]:
    """One caption a picture, {} and [name] in it replaced by `placeholder`, in whatever capitals it was written.

    names: of the pictures. beside: captions from files beside them, "" for none.
    texts: what the input captions holds. One text is read line by line; several texts are one caption each; an empty
    line leaves its picture without a caption; [filewords] in a line is the caption beside, and a single line with it
    counts for every picture. No text at all takes the captions beside the files.
    Raises ValueError if their number differs from that of the pictures, or a caption does not hold the placeholder.
    """
    lines = _lines(texts[0]) if len(texts) == 1 else list(texts)
    lines = [" ".join(line.split()) for line in lines] or list(beside)
    if len(lines) == 1 and FILEWORDS in lines[0]:
        lines = lines * len(names)
    if len(lines) != len(names):
        raise ValueError(
            f"There are {len(lines)} captions for {len(names)} pictures; write one line for each picture, in "
            f"the order shown, one line with {FILEWORDS} for all, or leave captions empty."
        )
    return [_filled(line.replace(FILEWORDS, words).rstrip(" ,"), placeholder, name)
            for line, words, name in zip(lines, beside, names, strict=True)]


def _lines(text: str) -> list[str]:
    """Lines as the widget shows them; str.splitlines would also break at characters that look like spaces."""
    return re.split(r"\r\n|\r|\n", text.rstrip()) if text.strip() else []


def _filled(caption: str, placeholder: str, name: str) -> str:
    word = Placeholders([placeholder])
    text = filled(filled(caption, placeholder, SLOT), placeholder, NAME)
    text = word.replace(text, lambda found: found)
    if text and not word.find(text):
        raise ValueError(
            f"The caption of {name}, '{caption}', does not name the subject; write {placeholder} or {{}} "
            f"where the subject is, put it before every caption by writing {{}}, {FILEWORDS} at captions, or "
            "remove the caption."
        )
    return text
