"""Which texts the page's code asks for, read from js/ without running it."""
from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

PACK = Path(__file__).parents[2]
LOCALES = PACK / "locales"
COMMENT = re.compile(r'("[^"\n]*"|`[^`]*`)|/\*.*?\*/|^\s*//[^\n]*', re.DOTALL | re.MULTILINE)
LITERAL = re.compile(r'"([^"\\]*)"|`([^`]*)`')
HOLE = re.compile(r"\{(\w+)\}")


class Call(NamedTuple):
    """One `t(keys, {values})`. keys: patterns, several where one is chosen; values: None when not all are written."""

    place: str
    keys: list[re.Pattern]
    values: set[str] | None


def code() -> dict[str, str]:
    """Path in js/ → the pack's own code in it, without comments."""
    files = [path for path in sorted((PACK / "js").rglob("*.js")) if "vendor" not in path.parts]
    return {str(path.relative_to(PACK)): COMMENT.sub(r"\1", path.read_text(encoding="utf-8")) for path in files}


def calls() -> list[Call]:
    """Every call of t() in js/."""
    return [_call(path, text, start.end()) for path, text in code().items()
            for start in re.finditer(r"(?<![\w.])(?<!function )t\(", text)]


def _call(path: str, text: str, start: int) -> Call:
    key, *values = _arguments(text, start)
    patterns = [re.compile(re.sub(r"\\\$\\\{.*?\\\}", r"\\w+", re.escape(plain or template)))
                for plain, template in LITERAL.findall(key)]
    place = f"{path}:{text[:start].count(chr(10)) + 1}"
    given = values[0].strip() if values else "{}"
    is_told = given.startswith("{") and "..." not in given
    return Call(place, patterns, _names(given[1:-1]) if is_told else None)


def _names(inside: str) -> set[str]:
    return {part.partition(":")[0].strip() for part in _arguments(f"{inside})", 0) if part.strip()}


def _arguments(text: str, start: int) -> list[str]:
    """Arguments of the call whose bracket opened just before `start`."""
    parts, depth, begin, position = [], 0, start, start
    while depth >= 0:
        if literal := LITERAL.match(text, position):
            position = literal.end()
            continue
        letter = text[position]
        depth += (letter in "([{") - (letter in ")]}")
        if depth < 0 or (letter == "," and depth == 0):
            parts.append(text[begin:position])
            begin = position + 1
        position += 1
    return parts


def texts(language: str) -> dict[str, dict[str, str]]:
    """"section.key" → {plural category: text} of a language; one that does not depend on a number has "other" alone."""
    sections = json.loads((LOCALES / language / "main.json").read_text(encoding="utf-8"))["personalize"]
    return {f"{section}.{key}": {"other": text} if isinstance(text, str) else text
            for section, entries in sections.items() for key, text in entries.items()}


def holes(forms: dict[str, str]) -> set[str]:
    """Names of the {values} in a text."""
    return {name for text in forms.values() for name in HOLE.findall(text)}
