"""BERT's word list, with which the Q-Former reads the subject's name."""
from __future__ import annotations

from pathlib import Path
from typing import Sequence

from tokenizers import BertWordPieceTokenizer, Tokenizer

FILES = ("tokenizer.json", "vocab.txt")
START, END = "[CLS]", "[SEP]"
START_ID = 101  # in bert-base-uncased


class WordList:
    """Splits text into BERT's tokens."""

    def __init__(self, tokenizer: Tokenizer | BertWordPieceTokenizer, longest: int):
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
    path = next((folder / name for folder in folders for name in FILES if (folder / name).is_file()), None)
    if path is None:
        raise ValueError(f"There is no word list of BERT in {folders[0]}; put vocab.txt (or tokenizer.json) of "
                         "bert-base-uncased there: the encoder reads the subject's name with it.")
    try:
        tokenizer = Tokenizer.from_file(str(path)) if path.suffix == ".json" else _from_lines(path)
    except Exception as error:  # the tokenizers library raises plain Exceptions
        raise _other(path, f"it cannot be read ({error})") from error
    size, start = tokenizer.get_vocab_size(), tokenizer.token_to_id(START)
    if size not in (rows - 1, rows):
        raise _other(path, f"it has {size} words, expected {rows - 1}")
    if start != START_ID or tokenizer.token_to_id(END) is None:
        raise _other(path, f"{START} has the number {start}, expected {START_ID}")
    return WordList(tokenizer, longest)


def _from_lines(path: Path) -> BertWordPieceTokenizer:
    words = path.read_text(encoding="utf-8").split("\n")
    while words and not words[-1]:
        words.pop()
    return BertWordPieceTokenizer({word.removesuffix("\r"): number for number, word in enumerate(words)})


def _other(path: Path, found: str) -> ValueError:
    return ValueError(f"{path} is not the word list of this encoder: {found}; put vocab.txt (or tokenizer.json) of "
                      "bert-base-uncased there.")
