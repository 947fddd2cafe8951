"""Where the words of a prompt sit in what a text encoder makes of it; carried in the CONDITIONING's options."""
from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any, NamedTuple

from .pairs import token_count
from .placeholders import Placeholders

LAYOUT = "personalize_layout"
# What stands at a position.
WORD, LEARNED, START, END, PADDING = "word", "learned vector", "start", "end", "padding"
VISUAL = "visual tokens"  # of a picture; also the name of their span, as no placeholder has a space
UNKNOWN, TEMPLATE = "unknown", "template"
FILLED = "subject"  # span of what stands in a template's slot

_WORD = re.compile(r"'(?:s|t|re|ve|m|ll|d)|[^\W\d_]+|\d|[^\s\w]+|_")


def parse_words(text: str) -> tuple[str, ...]:
    """What a widget `words` holds: words or phrases separated by commas or line ends, each once."""
    return tuple(dict.fromkeys(word.strip() for word in re.split(r"[,\n]", text) if word.strip()))


@dataclass(frozen=True)
class Piece:
    """What stands at one position.

    kind: WORD, LEARNED, START, END (the first position after the words, where all of them have been read), PADDING,
        VISUAL, TEMPLATE (text that the encoder itself puts around the prompt) or UNKNOWN.
    text: what a person reads; the placeholder of a learned vector; "" where there is nothing to read.
    id: number in the encoder's vocabulary; None for a vector.
    goes_on: whether the next piece's text follows without a space.
    """

    kind: str
    text: str = ""
    id: int | None = None
    goes_on: bool = False


class Word(NamedTuple):
    """One word in lower case, pieces put together, and its positions; a placeholder is one word."""

    text: str
    positions: tuple[int, ...]
    learned: bool = False


@dataclass(frozen=True)
class Layout:
    """What stands at each of the T positions of an encoded prompt.

    spans: (name, positions) of placeholders, of VISUAL and of words to remember.
    """

    pieces: tuple[Piece, ...]
    spans: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @property
    def length(self) -> int:
        """Positions T."""
        return len(self.pieces)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the spans."""
        return tuple(name for name, _ in self.spans)

    def span(self, name: str) -> tuple[int, ...]:
        """Positions of the span of that name; empty if there is none."""
        return dict(self.spans).get(name, ())

    def of_kind(self, *kinds: str) -> tuple[int, ...]:
        """Positions at which something of these kinds stands."""
        return tuple(position for position, piece in enumerate(self.pieces) if piece.kind in kinds)

    def find(self, name: str) -> tuple[int, ...]:
        """Positions of the span of that name, in any capitals, else of every place where its words follow each other.

        Whole words are compared: "dog" is not found in "dogs" or "hotdog". Empty if the prompt does not hold it.
        """
        alike = [positions for each, positions in self.spans if each.casefold() == name.casefold()]
        if self.span(name) or alike:
            return self.span(name) or alike[0]
        words = self.words()
        return tuple(sorted({p for i in self.places(name, words) for p in words[i].positions}))

    def places(self, name: str, words: Sequence[Word]) -> set[int]:
        """Indices in `words`, which are the layout's, of every place where those of `name` follow each other."""
        texts, wanted = [word.text for word in words], self._words_of(name)
        size = len(wanted)
        return {start + i for start in range(len(texts) - size + 1) if size and texts[start:start + size] == wanted
                for i in range(size)}

    def words(self) -> list[Word]:
        """Words in their order, without what is neither text nor learned."""
        words: list[Word] = []
        run: list[int] = []
        content = self.of_kind(WORD, LEARNED)
        for position, following in zip(content, (*content[1:], None)):
            piece = self.pieces[position]
            if piece.kind == LEARNED:
                _add_learned(words, piece.text.casefold(), position)
                continue
            run.append(position)
            if not piece.goes_on or following is None or self.pieces[following].kind == LEARNED:
                words += self._words_in(run)
                run = []
        return words

    def remembering(self, names: Iterable[str]) -> Layout:
        """The same with a span for each of the names that the prompt holds."""
        spans = dict(self.spans)
        for name in names:
            positions = self.find(name)
            if positions and name not in spans:
                spans[name] = positions
        return replace(self, spans=tuple(spans.items()))

    def spread(self, positions: Sequence[int], length: int) -> Layout:
        """The layout of `length` positions in which this one's stand at `positions`, a picture's tokens elsewhere."""
        pieces = [Piece(VISUAL)] * length
        for position, piece in zip(positions, self.pieces, strict=True):
            pieces[position] = piece
        spans = {name: tuple(positions[each] for each in places) for name, places in self.spans if name != VISUAL}
        visual = tuple(position for position, piece in enumerate(pieces) if piece.kind == VISUAL)
        return Layout(tuple(pieces), (*spans.items(), (VISUAL, visual)))

    def options(self) -> dict[str, Any]:
        """The entry for a CONDITIONING's options, in plain types that any node can save and read."""
        return {LAYOUT: {"spans": dict(self.spans), "pieces": tuple(astuple(piece) for piece in self.pieces)}}

    def _words_of(self, name: str) -> list[str]:
        """Words of a text, placeholders of the layout as one word each."""
        learned = Placeholders(each for each in self.names if " " not in each)
        found, end = [], 0
        for each in learned.find(name):
            found += [*_split(name[end:each.start]), each.word.casefold()]
            end = each.end
        return [*found, *_split(name[end:])]

    def _words_in(self, run: Sequence[int]) -> list[Word]:
        """Words of pieces that follow each other without a space."""
        text, extents = "", []
        for position in run:
            part = self.pieces[position].text.lower()
            start = len(text) if part else max(len(text) - 1, 0)  # of a letter that the piece before shows, or a space
            text += part
            extents.append((position, start, max(len(text), start + 1)))
        return [Word(match[0], tuple(position for position, start, end in extents
                                     if start < match.end() and end > match.start()))
                for match in _WORD.finditer(text)]


def joined(layouts: Sequence[Layout]) -> Layout:
    """Layouts one after the other; a span is where it is in any of them."""
    pieces: list[Piece] = []
    spans: dict[str, tuple[int, ...]] = {}
    for layout in layouts:
        for name, positions in layout.spans:
            spans[name] = (*spans.get(name, ()), *(len(pieces) + position for position in positions))
        pieces += layout.pieces
    return Layout(tuple(pieces), tuple(spans.items()))


def layout_in(options: Mapping[str, Any]) -> Layout | None:
    """The layout that a CONDITIONING's options carry; None if none does."""
    if LAYOUT not in options:
        return None
    carried = options[LAYOUT]
    return Layout(tuple(Piece(*piece) for piece in carried["pieces"]), tuple(carried["spans"].items()))


def layout_of(options: Mapping[str, Any], prompt: Layout | None = None) -> Layout | None:
    """Where words are in a conditioning of a sampling run: as its options say, else as in `prompt` if that has as many
    tokens; None if neither is known. Tokens joined to the end of a prompt leave the words in their places."""
    tokens, carried = token_count(options["cross_attn"]), layout_in(options)
    if carried is not None and carried.length <= tokens:
        return carried
    return prompt if prompt is not None and prompt.length == tokens else None


def _add_learned(words: list[Word], placeholder: str, position: int) -> None:
    """Adds a learned vector to the words: to the last one if it is the same placeholder's that goes on."""
    last = words[-1] if words else None
    if placeholder and last and last.learned and last.text == placeholder and last.positions[-1] == position - 1:
        words[-1] = Word(placeholder, (*last.positions, position), True)
    else:
        words.append(Word(placeholder, (position,), True))


def _split(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFC", text.lower()))
