"""BERT's word list, with which the Q-Former reads the subject's name."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import BertWordPieceTokenizer

from ..foreign.text import parse_json, read_text, shown_path

FILES = ("tokenizer.json", "vocab.txt")
START, END, UNKNOWN = "[CLS]", "[SEP]", "[UNK]"
START_ID = 101  # in bert-base-uncased
MOST_BYTES = 4 * 2**20  # bert-base-uncased has 0.7 MB as tokenizer.json


class WordList:
    """Splits text into BERT's tokens."""

    def __init__(self, tokenizer: BertWordPieceTokenizer, longest: int):
        self._tokenizer, self._longest = tokenizer, longest
        self._start, self._end = (tokenizer.token_to_id(token) for token in (START, END))

    def ids(self, text: str) -> tuple[int, ...]:
        """Tokens of `text` between [CLS] and [SEP]; what is longer than the model's positions is cut off."""
        words = self._tokenizer.encode(text, add_special_tokens=False).ids
        return (self._start, *words[:self._longest - 2], self._end)


def read_word_list(folders: Sequence[Path], rows: int, longest: int) -> WordList:
    """The word list in the first of `folders` that holds one.

    rows: of the model's table of word embeddings, one of which is for a token that BLIP-Diffusion added. longest:
    positions of the model. Raises ValueError with one sentence if there is none or it is another model's.
    """
    path = next((folder / name for folder in folders for name in FILES if (folder / name).exists()), None)
    if path is None:
        raise ValueError(f"There is no word list of BERT in {folders[0]}; put vocab.txt (or tokenizer.json) of "
                         "bert-base-uncased there: the encoder reads the subject's name with it.")
    text = read_text(path, MOST_BYTES)
    try:
        words = _of_json(text) if path.suffix == ".json" else _of_lines(text)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _other(path, f"it cannot be read ({error})") from error
    if len(words) not in (rows - 1, rows):
        raise _other(path, f"it has {len(words)} words, expected {rows - 1}")
    if sorted(words.values()) != list(range(len(words))):
        raise _other(path, "its words are not numbered from 0 on, each by a number of its own")
    if words.get(START) != START_ID or END not in words or UNKNOWN not in words:
        raise _other(path, f"{START} has the number {words.get(START)}, expected {START_ID}, beside {END} and "
                           f"{UNKNOWN}")
    if longest < 3:
        raise ValueError(f"The encoder of {path.parent} has room for {longest} tokens of the subject's name; download "
                         "its folder again.")
    return WordList(BertWordPieceTokenizer(words), longest)


def _of_json(text: str) -> dict[str, int]:
    """Of a tokenizer.json: only its words count, as the uncased BERT's rules for splitting are known."""
    content: Mapping[str, Any] = parse_json(text.encode())
    words = content["model"]["vocab"]
    if content["model"].get("type", "WordPiece") != "WordPiece" or not isinstance(words, dict):
        raise ValueError("it is no list of word pieces")
    added = {token["content"]: token["id"] for token in content.get("added_tokens") or ()}
    numbered = {**words, **added}
    if not all(isinstance(word, str) and type(number) is int for word, number in numbered.items()):
        raise ValueError("its words are not numbered")
    return numbered


def _of_lines(text: str) -> dict[str, int]:
    words = text.split("\n")
    while words and not words[-1]:
        words.pop()
    numbered = {word.removesuffix("\r"): number for number, word in enumerate(words)}
    if len(numbered) != len(words):
        raise ValueError("it holds a word twice")
    return numbered


def _other(path: Path, found: str) -> ValueError:
    return ValueError(f"{shown_path(path)} is not the word list of this encoder: {found}; put vocab.txt (or "
                      "tokenizer.json) of bert-base-uncased there.")
