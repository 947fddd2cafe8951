"""Prompt templates with one slot, by kind: the PROMPT_SET that losses, recipes and measurements draw from."""
from __future__ import annotations

import io
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ..foreign.text import read_text, short

SLOT = "{}"
NAME, FILEWORDS = "[name]", "[filewords]"  # the subject and a picture's caption in AUTOMATIC1111's templates
OWN = "own"
BUNDLED = {"animate": ("background", "action", "outfit", "style", "colour"),
           "inanimate": ("background", "style", "colour"),
           "universal": ("background", "style", "colour"),
           "pictures": ("photo", "drawing", "picture")}
_FOLDER = Path(__file__).parent / "prompt_sets"
MOST_BYTES, MOST_PROMPTS, MOST_LETTERS = 4 * 2**20, 10_000, 2_000  # a training draws a few thousand prompts
_HEADING = re.compile(r"\[([\w -]+)\]")
_BULLET = re.compile(r"(?:\d+[.)]|[-*•–])\s+")
_FENCE = "```"  # of code
_QUOTES = {'"': '"', "“": "”", "„": "“", "«": "»", "`": "`"}


@dataclass(frozen=True)
class PromptSet:
    """Prompt templates.

    prompts: (kind, template); kind is "background", "action", …, or "own"; a template holds exactly one {} where a
        placeholder or class words go, e.g. ("background", "a {} on the beach").
    """

    prompts: tuple[tuple[str, str], ...]

    @property
    def templates(self) -> tuple[str, ...]:
        """All templates, in order."""
        return tuple(template for _, template in self.prompts)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds that occur, in order of appearance."""
        return tuple(dict.fromkeys(kind for kind, _ in self.prompts))

    def of(self, kinds: Collection[str]) -> PromptSet:
        """Only the templates of these kinds."""
        return PromptSet(tuple(prompt for prompt in self.prompts if prompt[0] in kinds))

    def fill(self, words: str) -> tuple[str, ...]:
        """All templates with `words` in the slot."""
        return tuple(template.replace(SLOT, words) for template in self.templates)


def join_sets(*sets: PromptSet) -> PromptSet:
    """All templates in order, each once, however it is spaced or capitalised; the first one's kind counts."""
    first: dict[str, tuple[str, str]] = {}
    for prompts in sets:
        for kind, template in prompts.prompts:
            first.setdefault(" ".join(template.lower().split()), (kind, template))
    return PromptSet(tuple(first.values()))


def bundled(subject: str, kinds: Collection[str] | None = None) -> PromptSet:
    """The pack's own set of this name in BUNDLED; all kinds, or only the given ones."""
    prompts = parse((_FOLDER / f"{subject}.txt").read_text("utf-8"), f"{subject}.txt")
    return prompts if kinds is None else prompts.of(kinds)


def read_prompts(path: Path) -> PromptSet:
    """Templates of a text file, see `parse`. Raises ValueError with one sentence if it is too long or no UTF-8."""
    return parse(read_text(path, MOST_BYTES), Path(path).name)


def parse(text: str, source: str) -> PromptSet:
    """Templates of `text`, one a line, each once.

    Numbers, bullets and quotation marks around a line, as language models write lists, are left out. Empty lines, lines
    that start with # and lines without a slot that end with a colon are skipped. A line such as [action] gives the kind
    of the lines after it; before the first one the kind is "own". [name] is a slot too. source: where the text is from,
    for messages.
    Raises ValueError naming the line whose number of slots is not one, or which is too long.
    """
    prompts, kind = [], OWN
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        line = _without_marks(line).replace(NAME, SLOT)
        if len(line) > MOST_LETTERS:
            raise ValueError(f"Line {number} of {source} has {len(line)} letters, more than the {MOST_LETTERS} of a "
                             "prompt; write one prompt a line.")
        if not line or line.startswith("#") or _is_said_before(line):
            continue
        if heading := _HEADING.fullmatch(line):
            kind = heading[1].strip().lower()
            continue
        slots = line.count(SLOT)
        if slots != 1:
            found = f"has {slots} slots" if slots else "has no slot"
            raise ValueError(
                f"Line {number} of {source} {found}: '{short(line)}'; write exactly one {{}} where the subject "
                "goes, for example: a {} on the beach."
            )
        if FILEWORDS in line:
            raise ValueError(
                f"Line {number} of {source} has {FILEWORDS}, a picture's caption, which a list of prompts does "
                "not know; write such a line at captions of Subject."
            )
        if len(prompts) == MOST_PROMPTS:
            raise ValueError(f"{source} holds more than {MOST_PROMPTS} prompts; keep the best of them.")
        prompts.append((kind, line))
    return join_sets(PromptSet(tuple(prompts)))


def _without_marks(line: str) -> str:
    """A line of a list without what makes it one."""
    line = line.strip()
    if line.startswith(_FENCE):
        return ""
    if bullet := _BULLET.match(line):
        line = line[bullet.end():]
    if len(line) > 1 and _QUOTES.get(line[0]) == line[-1]:
        line = line[1:-1].strip()
    return line


def _is_said_before(line: str) -> bool:
    """Whether a line introduces a list: "Here are your prompts:"."""
    return line.endswith(":") and SLOT not in line
