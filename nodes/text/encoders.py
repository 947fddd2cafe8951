"""The text encoders inside a ComfyUI CLIP: their tokenizers, embedding tables and keys."""
from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Sequence

from torch import Tensor

from comfy.sd1_clip import SDTokenizer

from .layout import END, LEARNED, PADDING, START, WORD, Piece

_LONGEST_LETTER = 4  # bytes, and so pieces
SPECIAL = ("<|startoftext|>", "<|endoftext|>")


@dataclass(frozen=True)
class TextEncoder:
    """One encoder of a CLIP.

    key: name in embedding files and CONCEPTs ("clip_l", "clip_g", "clip_h").
    attribute: name on the CLIP's tokenizer and model.
    token_key: name in the dict that `CLIP.tokenize` returns ("l", "g", "h").
    width: length d of a row of the embedding table.
    """

    key: str
    attribute: str
    token_key: str
    width: int
    tokenizer: SDTokenizer
    table: Tensor

    def word_ids(self, words: str) -> list[int]:
        """Token ids of `words` without start, end and padding."""
        ids = self.tokenizer.tokenizer(words)["input_ids"]
        end = -1 if self.tokenizer.tokenizer_adds_end_token else None
        return list(ids[self.tokenizer.tokens_start:end])

    def pieces(self, chunks: Sequence[Sequence[int | str]]) -> tuple[Piece, ...]:
        """What stands at each position of the output for chunks of token ids; a text stands for a learned vector, and
        is the placeholder or ""."""
        return tuple(piece for chunk in chunks for piece in self._pieces_of(chunk))

    def piece(self, token: int) -> Piece:
        """A token of the vocabulary by itself."""
        return self._texts([token])[0]

    def _pieces_of(self, chunk: Sequence[int | str]) -> list[Piece]:
        start, *content = chunk
        end = content.index(self.tokenizer.end_token)
        words, (stop, *padding) = content[:end], content[end:]
        return [Piece(START, SPECIAL[0], start), *self._words(words), Piece(END, SPECIAL[1], stop),
                *(Piece(PADDING, "", token) for token in padding)]

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
        pieces: list[Piece] = []
        letter: list[int] = []
        for place, token in enumerate(ids, start=1):
            letter.append(token)
            text = self.tokenizer.tokenizer.decode(letter).strip()
            if "\ufffd" in text and len(letter) < _LONGEST_LETTER and place < len(ids):
                continue
            texts = [text] + [""] * (len(letter) - 1)
            pieces += [Piece(WORD, text, each, not self._ends_word(each)) for text, each in zip(texts, letter)]
            letter = []
        return pieces

    def _ends_word(self, token: int) -> bool:
        return self.tokenizer.inv_vocab[token].endswith("</w>")


def text_encoders(clip) -> tuple[TextEncoder, ...]:
    """The CLIP-style encoders of `clip` in the order of its tokenizer.

    Raises ValueError if there is none, or one that is no CLIP text model (T5 or a language model).
    """
    if clip is None:
        raise ValueError("The CLIP is missing: the checkpoint holds no text encoder; load one with Load CLIP.")
    found = []
    for attribute, tokenizer in vars(clip.tokenizer).items():
        if not isinstance(tokenizer, SDTokenizer):
            continue
        model = getattr(clip.cond_stage_model, attribute, None)
        text_model = getattr(getattr(model, "transformer", None), "text_model", None)
        if text_model is None:
            raise ValueError(f"This CLIP holds the text encoder '{attribute}', which is no CLIP text model; "
                             "use a checkpoint of SD1.x, SD2.x or SDXL.")
        table = model.transformer.get_input_embeddings().weight
        found.append(TextEncoder(tokenizer.embedding_key, attribute, attribute.removeprefix("clip_"),
                                 table.shape[1], tokenizer, table))
    if not found:
        raise ValueError("This CLIP has no CLIP text encoder; use a checkpoint of SD1.x, SD2.x or SDXL.")
    return tuple(found)


@functools.lru_cache(maxsize=1)
def clip_vocabulary() -> frozenset[str]:
    """Byte-pair tokens that every CLIP text encoder shares, as ComfyUI ships them."""
    return frozenset(SDTokenizer().tokenizer.get_vocab())
