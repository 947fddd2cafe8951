"""The kinds of text encoders: how each splits text, what it puts around a prompt, and which rows of it come out."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from comfy.sd1_clip import SDTokenizer
from torch import Tensor

from .layout import END, LEARNED, PADDING, START, TEMPLATE, WORD, Piece

_LONGEST_LETTER = 4  # bytes, and so pieces
_SPACE = "▁"  # SentencePiece's
_ROLES, _USER, _NEW_LINE, _ROLE_MARK = 2, 872, 198, 151644  # of Qwen's chat template


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """One encoder of a CLIP.

    key: name in embedding files and CONCEPTs ("clip_l", "t5xxl", "qwen3_4b").
    attribute: name on the CLIP's tokenizer and model.
    token_key: name in the dict that `CLIP.tokenize` returns ("l", "t5xxl", "qwen3_4b").
    width: length d of a row of the embedding table.
    tokenizers: the CLIP's, of all its encoders.
    """

    key: str
    attribute: str
    token_key: str
    width: int
    tokenizer: SDTokenizer
    table: Tensor
    tokenizers: Any

    def word_ids(self, words: str) -> list[int]:
        """Token ids of `words`, as they stand after a space, without start, end and padding."""
        ids = self.tokenizer.tokenizer(words)["input_ids"]
        end = -1 if self.tokenizer.tokenizer_adds_end_token else None
        return list(ids[self.tokenizer.tokens_start:end])

    def pieces(self, chunks: Sequence[Sequence[int | str]]) -> tuple[Piece, ...]:
        """What stands at each position before anything is cut off, for chunks of token ids; a text stands for a learned
        vector, and is the placeholder or ""."""
        return tuple(piece for chunk in chunks for piece in self._pieces_of(chunk))

    def cut(self, chunks: Sequence[Sequence[int | str]]) -> int:
        """Positions in front that the encoder reads and then leaves out."""
        return 0

    def piece(self, token: int) -> Piece:
        """A token of the vocabulary by itself."""
        return self._texts([token])[0]

    def is_word(self, token: int) -> bool:
        """Whether a row of the table is of the vocabulary and no mark such as the end of a text."""
        raw = self.tokenizer.inv_vocab.get(token)
        return raw is not None and not (raw[:1] + raw[-1:] in ("<>", "[]") and len(raw) > 2)

    def _pieces_of(self, chunk: Sequence[int | str]) -> list[Piece]:
        """Of a prompt in a frame: what the encoder makes of no text at all stands around it."""
        tokens, pads = self._without_padding(chunk)
        before = _common(self._frame, tokens)
        after = _common(self._frame[before:][::-1], tokens[before:][::-1])
        opening, closing = tokens[:before], tokens[len(tokens) - after:]
        whole = [*(self._mark(TEMPLATE if place or token != self.tokenizer.start_token else START, token)
                   for place, token in enumerate(opening)),
                 *self._words(tokens[before:len(tokens) - after]),
                 *(self._mark(TEMPLATE if place else END, token) for place, token in enumerate(closing))]
        padding = [Piece(PADDING, "", self.tokenizer.pad_token)] * pads
        return [*padding, *whole] if self.tokenizer.pad_left else [*whole, *padding]

    @cached_property
    def _frame(self) -> list[int | str]:
        """What stands around a prompt, with nothing between."""
        (chunk,) = self.tokenizers.tokenize_with_weights("")[self.token_key]
        return self._without_padding([token for token, *_ in chunk])[0]

    def _without_padding(self, chunk: Sequence[int | str]) -> tuple[list[int | str], int]:
        """The tokens, and how many of padding stood beside them."""
        tokens = list(chunk)
        while tokens and tokens[0 if self.tokenizer.pad_left else -1] == self.tokenizer.pad_token:
            tokens.pop(0 if self.tokenizer.pad_left else -1)
        return tokens, len(chunk) - len(tokens)

    def _mark(self, kind: str, token: int | str) -> Piece:
        """A token that is no part of the prompt."""
        return Piece(kind, self._raw(token), token if isinstance(token, int) else None)

    def _raw(self, token: int | str) -> str:
        return self.tokenizer.inv_vocab.get(token, "")

    def _words(self, tokens: Sequence[int | str]) -> list[Piece]:
        pieces: list[Piece] = []
        ids: list[int] = []
        for token in tokens:
            if isinstance(token, int):
                ids.append(token)
            else:
                pieces += [*self._texts(ids), Piece(LEARNED, token)]
                ids = []
        return pieces + self._texts(ids)

    def _texts(self, ids: Sequence[int]) -> list[Piece]:
        """Pieces of ids that follow each other. Of a letter that several of them make up, the first shows the whole."""
        texts: list[str] = []
        letter: list[int] = []
        for place, token in enumerate(ids, start=1):
            letter.append(token)
            text = self._spaced(letter)
            if "\ufffd" not in text or len(letter) == _LONGEST_LETTER or place == len(ids):
                texts += [text] + [""] * (len(letter) - 1)
                letter = []
        following = [*texts[1:], " "]
        return [Piece(WORD, text.strip(), token, self._goes_on(token, text, after))
                for token, text, after in zip(ids, texts, following)]

    def _spaced(self, ids: Sequence[int]) -> str:
        """Text of ids that make up a letter or more, with the space before it."""
        raw = self._raw(ids[0])
        if raw.startswith(_SPACE):
            return raw.replace(_SPACE, " ")
        return self.tokenizer.tokenizer.decode(list(ids), skip_special_tokens=False)

    def _goes_on(self, token: int, text: str, following: str) -> bool:
        lone_space = text == " "  # of the word that follows
        return not following[:1].isspace() and (lone_space or not text[-1:].isspace())


class ClipEncoder(TextEncoder):
    """A CLIP text model: chunks of 77, each with a start and at least one end."""

    def is_word(self, token: int) -> bool:
        """All but start and end."""
        return token not in (self.tokenizer.start_token, self.tokenizer.end_token)

    def _pieces_of(self, chunk: Sequence[int | str]) -> list[Piece]:
        end = next(place for place, token in enumerate(chunk) if place and token == self.tokenizer.end_token)
        padding = [Piece(PADDING, "", token if isinstance(token, int) else None) for token in chunk[end + 1:]]
        return [self._mark(START, chunk[0]), *self._words(chunk[1:end]), self._mark(END, chunk[end]), *padding]

    def _spaced(self, ids: Sequence[int]) -> str:
        return self.tokenizer.tokenizer.decode(list(ids))

    def _goes_on(self, token: int, text: str, following: str) -> bool:
        return not self._raw(token).endswith("</w>")


class T5Encoder(TextEncoder):
    """T5: the words, an end, padding; every row depends on all of them."""


class LanguageModel(TextEncoder):
    """A causal language model: a chat template around the prompt; a row depends on itself and those before."""

    def word_ids(self, words: str) -> list[int]:
        """See TextEncoder; byte-pair vocabularies know a word after a space as another token than one without."""
        ids = super().word_ids(words)
        return ids if ids and self._raw(ids[0]).startswith(_SPACE) else super().word_ids(f" {words}")


class TrimmedLanguageModel(LanguageModel):
    """One of which the system's and the opening of the user's part are cut off after encoding (Qwen-Image, Krea 2)."""

    def cut(self, chunks: Sequence[Sequence[int | str]]) -> int:
        """Up to the second mark of a role, and "user" and a new line after it."""
        tokens = chunks[0]
        marks = [place for place, token in enumerate(tokens) if token == _ROLE_MARK][:_ROLES]
        if not marks:
            return 0
        opened = list(tokens[marks[-1] + 1:marks[-1] + _ROLES + 1]) == [_USER, _NEW_LINE]
        return marks[-1] + (3 if opened and len(tokens) > marks[-1] + 3 else 0)


def _common(ours: Sequence[int | str], theirs: Sequence[int | str]) -> int:
    """How many tokens in front are the same."""
    return next((place for place, (one, other) in enumerate(zip(ours, theirs)) if one != other),
                min(len(ours), len(theirs)))
