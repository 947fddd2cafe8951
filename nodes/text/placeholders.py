"""Where made-up words stand in the text of a prompt, with regard to what else prompts are written with."""
from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass

EMBEDDING = "embedding:"
_MARKS = r"\u0300-\u036f"  # combining accents, which belong to the letter before them
_TAG = r"<\w+:[^<>]*>"  # <lora:my-dog:1>, which other packs read
# As ComfyUI's tokenizer takes it for a file: where a piece of weighted text begins, or after white space.
_FILE = rf"(?:^|(?<=\s)|(?<=(?<!\\)[()])){EMBEDDING}\s*(?P<name>(?:\\[()]|[^\s():])*)"

FileLength = Callable[[str], int]


@dataclass(frozen=True)
class Found:
    """A word at text[start:end]. The text may differ from `word` in capitals, in how accents are composed and by
    "embedding:" in front."""

    start: int
    end: int
    word: str


class Placeholders:
    """Finds some words in prompts: whole words only, and not inside <lora:…> or the name of an embedding file."""

    def __init__(self, words: Iterable[str]):
        self.words = tuple(dict.fromkeys(words))
        self._exact = {_composed(word): word for word in reversed(self.words)}
        self._any_case = {_composed(word).casefold(): word for word in reversed(self.words)}
        longest_first = sorted(self.words, key=len, reverse=True)
        word = "|".join(map(_whole_word, longest_first)) or r"(?!)"
        self._word = re.compile(word, re.IGNORECASE)
        self._syntax = re.compile(rf"{_FILE}|{_TAG}|(?:{EMBEDDING})?(?P<word>{word})", re.IGNORECASE)

    def find(self, text: str, file_length: FileLength = lambda name: 0) -> list[Found]:
        """Every place of a word, in order.

        file_length: of what follows "embedding:", how many letters name a file that exists; 0 if none does. A file's
        own name wins over a word in it.
        """
        found, position = [], 0
        while match := self._syntax.search(text, position):
            if match["word"] is not None:
                found.append(Found(match.start(), match.end(), self._named(match["word"])))
                position = match.end()
            elif match["name"] is None or not self._word.search(match["name"]):
                position = match.end()
            else:
                length, word = file_length(match["name"]), self._word.match(text, match.start("name"))
                if word and not length:
                    found.append(Found(match.start(), word.end(), self._named(word[0])))
                    position = word.end()
                else:
                    position = match.start("name") + (length or _until_bracket(match["name"]))
        return found

    def replace(self, text: str, meant: Callable[[str], str], file_length: FileLength = lambda name: 0) -> str:
        """`text` with meant(word) in the place of every word."""
        parts, position = [], 0
        for each in self.find(text, file_length):
            parts += [text[position:each.start], meant(each.word)]
            position = each.end
        return "".join([*parts, text[position:]])

    def _named(self, written: str) -> str:
        composed = _composed(written)
        return self._exact.get(composed) or self._any_case[composed.casefold()]


def filled(template: str, word: str, slot: str = "{}") -> str:
    """`template` with a word in every slot, and with a space where it would else be part of a longer word."""
    before, *rest = template.split(slot)
    for after in rest:
        before += word if _stands(before, word, "") else f" {word}"
        before += after if _stands("", word, after) else f" {after}"
    return before


def _stands(before: str, word: str, after: str) -> bool:
    return any(found.word == word and found.end == len(before + word)
               for found in Placeholders([word]).find(before + word + after))


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _whole_word(word: str) -> str:
    """Regular expression of `word` that is not part of a longer one; my-dog-2 and my-dog-000050 are longer words."""
    written = dict.fromkeys((word, _composed(word), unicodedata.normalize("NFD", word)))
    before = rf"(?<![\w{_MARKS}])" if re.match(r"\w", word[0]) else ""
    after = rf"(?![\w{_MARKS}]|-\d)" if re.match(r"\w", _composed(word)[-1]) else ""
    return f"{before}(?:{'|'.join(map(re.escape, written))}){after}"


def _until_bracket(name: str) -> int:
    """Letters that ComfyUI takes for a file's name; what follows is text again."""
    return next(re.finditer(r"[<\[]|$", name)).start()
