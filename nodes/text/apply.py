"""Teaching a CLIP's tokenizer new words without a file: prompts may then hold placeholders like any other word."""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from comfy.sd1_clip import SD1Tokenizer, SDTokenizer
from torch import Tensor

from ..notice import notice
from .concept import Concept, check_layers, initial_vectors, plain_vectors
from .encoder_kinds import ClipEncoder, TextEncoder
from .encoders import text_encoders
from .layered import LayerRows, LayerVector, reading_by_layer
from .placeholders import EMBEDDING, Found, Placeholders, filled
from .taught import Taught, made
from .unsaid import tell_unsaid
from .vectors import WordVectors

# The classes that are added to: of one encoder, and of all.
_Tokenizer, _Tokenizers = (SDTokenizer, SD1Tokenizer) if TYPE_CHECKING else (object, object)

# ComfyUI 0.16 returns (embedding, leftover), later versions (embedding, name, leftover).
_EMPTY_FOLDER: Any = SimpleNamespace(embedding_directory=[], embedding_size=1, embedding_key="")
_TELLS_NAMES = len(SDTokenizer._try_get_embedding(_EMPTY_FOLDER, "none")) == 3
_EMBEDDING_TYPE = "embedding"  # of what ComfyUI takes in the place of a token
# Ordinary words that are one token with a space before it and without; "(cat" is one token for Qwen, "(boy" is two.
_STAND_INS = ("dog", "cat", "boy", "art")
_SPACES = "▁Ġ"  # in the vocabularies
_GAP = "\0"  # in no prompt
# ComfyUI refuses to look outside its folders, so no file can be meant by a name that starts like this.
_NO_FILE = "../personalize-"


class Rows(Protocol):
    """Vectors (n, d) of a word, or what shall stand among a prompt's tokens in their place."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def clip_with_vectors(clip, vectors: Mapping[str, Mapping[str, Rows]]):
    """A clone of `clip` whose prompts understand placeholders; `clip` itself is unchanged.

    vectors: placeholder → encoder key → (n, d). A placeholder is found anywhere in a prompt, also weighted, before
    punctuation and more than once. In CLIP encoding it equals encoding `embedding:name` of a file with the same
    vectors; so does `embedding:<placeholder>`, unless there is a file of that name. In other encoders the vectors stand
    exactly where an ordinary word's token would. WordVectors with an axis of layers are read as `layered` says.
    """
    taught = clip.clone()
    taught.tokenizer = made(_TaughtTokenizers, clip.tokenizer)
    if any(isinstance(each, WordVectors) and each.axis == "layer" for each in vectors.values()):
        taught.cond_stage_model = reading_by_layer(clip.cond_stage_model)
    for encoder in text_encoders(clip):
        rows = {placeholder: _rows(by_encoder, encoder.key) for placeholder, by_encoder in vectors.items()}
        setattr(taught.tokenizer, encoder.attribute, _taught(encoder, rows))
    return taught


def apply_concepts(clip, concepts: Sequence[Concept]):
    """A clone of `clip` that understands the placeholders of `concepts`; one without vectors means its initial words.

    Raises ValueError if a concept is for another family of models, or has vectors per layer that the CLIP was not
    taught before.
    """
    known = layered_words(clip)
    return clip_with_vectors(clip, {
        concept.placeholder: plain_vectors(concept, clip, "a CLIP alone cannot carry; use Apply Per-Layer Concept")
        for concept in concepts if concept.vectors.axis is None or concept.placeholder not in known})


def apply_layered_concepts(clip, concepts: Sequence[Concept], layers: int):
    """The same for a model of so many layers, also with vectors for each of them. Raises ValueError if there are more
    or fewer of a concept."""
    vectors = {concept.placeholder: initial_vectors(concept, clip) for concept in concepts}
    for placeholder, by_encoder in vectors.items():
        check_layers(placeholder, by_encoder, layers)
    return clip_with_vectors(clip, vectors)


def layered_words(clip) -> list[str]:
    """Placeholders that this CLIP was taught vectors of for each layer."""
    rows = getattr(text_encoders(clip)[0].tokenizer, "placeholder_rows", {})
    return [placeholder for placeholder, vectors in rows.items() if isinstance(vectors, LayerRows)]


def words_in(clip, prompt: str) -> list[Found]:
    """Places of the words that `clip` was taught, in a prompt's text."""
    tokenizer = text_encoders(clip)[0].tokenizer
    return tokenizer.words_in(prompt) if isinstance(tokenizer, _TaughtTokenizer) else []


def vector_of(token: Any) -> Tensor | None:
    """The vector (d,) that stands in the place of a token, the mean of one for each layer; None if it is a token of the
    vocabulary."""
    if isinstance(token, dict) and token.get("type") == _EMBEDDING_TYPE:
        return token["data"]
    if isinstance(token, LayerVector):
        return token.mean
    return token if isinstance(token, Tensor) else None


def known_placeholders(clip) -> dict[str, int]:
    """Placeholders that Apply Concept taught this CLIP, with the number of vectors of each."""
    rows = getattr(text_encoders(clip)[0].tokenizer, "placeholder_rows", {})
    return {placeholder: len(vectors) for placeholder, vectors in rows.items()}


class _TaughtTokenizer(Taught, _Tokenizer):
    """Of one encoder. placeholder_rows: placeholder → (n, d). words: the same placeholders. other_embeddings: finds
    embeddings in the class's place, as another pack had arranged; or None."""

    placeholder_rows: Mapping[str, Rows]
    words: Placeholders
    other_embeddings: Any = None

    def words_in(self, text: str) -> list[Found]:
        """Where vectors stand."""
        return self.words.find(text, self._file_length)

    def _find_file(self, embedding_name: str):
        if not embedding_name.strip():  # ComfyUI itself would fail at "embedding:" with nothing after it
            return (None, "", "") if _TELLS_NAMES else (None, "")
        return (self.other_embeddings or super()._try_get_embedding)(embedding_name)

    def _file_length(self, name: str) -> int:
        if self.embedding_directory is None:  # ComfyUI looks for no files
            return 0
        rows, *_, leftover = self._find_file(name.replace("\\(", "(").replace("\\)", ")"))
        after = leftover.strip().replace("(", "\\(").replace(")", "\\)")
        return 0 if rows is None else len(name) - len(after)


class _TaughtClip(_TaughtTokenizer):
    """Puts words in as ComfyUI puts in embeddings."""

    def tokenize_with_weights(self, text: str, *args, **kwargs):
        """As the class does, with a name for each word."""
        names = {placeholder: f" {EMBEDDING}{_NO_FILE}{i} " for i, placeholder in enumerate(self.placeholder_rows)}
        return super().tokenize_with_weights(self.words.replace(text, names.__getitem__, self._file_length),
                                             *args, **kwargs)

    def _try_get_embedding(self, embedding_name: str):
        name, _, leftover = embedding_name.partition(" ")
        number = name.removeprefix(_NO_FILE)
        if number == name or not number.isdecimal():
            return self._find_file(embedding_name)
        rows = list(self.placeholder_rows.values())[int(number)]
        return (rows, name, leftover.strip()) if _TELLS_NAMES else (rows, leftover.strip())


class _TaughtInContext(_TaughtTokenizer):
    """Puts a word's vectors in the place of an ordinary word's token, so that spaces, template and all other tokens are
    those beside an ordinary word. The text is split with two such words in turn: what differs is the word."""

    def tokenize_with_weights(self, text: str, *args, **kwargs):
        """As the class does, with vectors."""
        found = self.words_in(text)
        if not found:
            return super().tokenize_with_weights(text, *args, **kwargs)
        gaps = self.words.replace(text, lambda word: _GAP, self._file_length)
        for template in (gaps, gaps.replace(_GAP, f" {_GAP} ")):
            split = super().tokenize_with_weights
            one, *others = [split(filled(template, word, _GAP), *args, **kwargs) for word in _STAND_INS]
            places = next(filter(None, (self._places(one, other, len(found)) for other in others)), None)
            if places:
                return self._with_vectors(one, places, [self.placeholder_rows[each.word] for each in found])
        raise ValueError(f"The prompt '{text}' cannot be split so that {found[0].word} is a word of its own; write it "
                         "elsewhere in the prompt.")

    def _places(self, chunks: Sequence[Sequence[tuple]], others: Sequence[Sequence[tuple]], count: int
                ) -> list[tuple[int, int]]:
        """(chunk, place) of each token of the stand-in, where the two differ; empty unless they are `count` tokens."""
        if [len(chunk) for chunk in chunks] != [len(chunk) for chunk in others]:
            return []
        differing = [(i, j) for i, (ours, theirs) in enumerate(zip(chunks, others))
                     for j, ((token, *_), (other, *_)) in enumerate(zip(ours, theirs))
                     if isinstance(token, int) and token != other]
        alone = all(self.inv_vocab[chunks[i][j][0]].lstrip(_SPACES) == _STAND_INS[0] for i, j in differing)
        return differing if alone and len(differing) == count else []

    def _with_vectors(self, chunks: Sequence[Sequence[tuple]], places: Sequence[tuple[int, int]],
                      words: Sequence[Rows]) -> list[list[tuple]]:
        """The chunks with a word's vectors at each place, and with as many pads less as there are more tokens."""
        vectors = dict(zip(places, words))
        made = []
        for i, chunk in enumerate(chunks):
            tokens: list[tuple] = []
            for j, (token, *rest) in enumerate(chunk):
                rows = vectors.get((i, j))
                tokens += [(token, *rest)] if rows is None else [(_token(rows[n]), *rest) for n in range(len(rows))]
            side = 0 if self.pad_left else -1
            while len(tokens) > len(chunk) and isinstance(tokens[side][0], int) and tokens[side][0] == self.pad_token:
                tokens.pop(side)
            made.append(tokens)
        return made


class _TaughtTokenizers(Taught, _Tokenizers):
    """Of all encoders of a CLIP."""

    def tokenize_with_weights(self, text: Any, *args, **kwargs):
        """As the class does; says which words are lost if another pack has put its own tokenizers in their place."""
        tokens = super().tokenize_with_weights(text, *args, **kwargs)
        texts = [text] if isinstance(text, str) else list(text)
        self._tell_unsaid(texts)
        lost = self._lost(texts, tokens)
        if lost:
            notice(f"{' and '.join(lost)} was taught by Apply Concept, but this node splits prompts by rules of its "
                   "own that know no taught words. Encode the prompt with CLIP Text Encode, or save the concept and "
                   "write embedding: and its name here.")
        return tokens

    def _tell_unsaid(self, texts: Sequence[str]) -> None:
        taught = [each for each in vars(self).values() if isinstance(each, _TaughtTokenizer)]
        if taught and not any(taught[0].words_in(text) for text in texts):
            tell_unsaid(texts, taught[0].words.words)

    def _lost(self, texts: Sequence[str], tokens) -> list[str]:
        replaced = [each for each in vars(self).values()
                    if isinstance(each, _TaughtTokenizer) and "tokenize_with_weights" in vars(each)]
        if not replaced:
            return []
        known, vectors = replaced[0], list(_vectors(tokens))
        written = dict.fromkeys(found.word for text in texts for found in known.words_in(text))
        first = {word: known.placeholder_rows[word][0] for word in written}
        return [word for word in written if not any(_same(first[word], vector) for vector in vectors)]


def _taught(encoder: TextEncoder, rows: Mapping[str, Rows]) -> SDTokenizer:
    tokenizer = encoder.tokenizer
    taught = made(_TaughtClip if isinstance(encoder, ClipEncoder) else _TaughtInContext, tokenizer)
    vars(taught).pop("tokenize_with_weights", None)
    if "_try_get_embedding" in vars(taught):
        taught.other_embeddings = vars(taught).pop("_try_get_embedding")
    if isinstance(taught, _TaughtClip):
        taught.embedding_directory = tokenizer.embedding_directory or []
    taught.placeholder_rows = {**getattr(tokenizer, "placeholder_rows", {}), **rows}
    taught.words = Placeholders(taught.placeholder_rows)
    return taught


def _token(row: Any) -> Any:
    """What ComfyUI's encoders take for a vector; no plain tensor, on which tokenizers that look for pictures fail."""
    return {"type": _EMBEDDING_TYPE, "data": row} if isinstance(row, Tensor) else row


def _vectors(tokens) -> Iterator[Any]:
    """Everything that stands in the place of a token."""
    for chunk in (chunk for chunks in tokens.values() for chunk in chunks):
        yield from (vector if (vector := vector_of(token)) is not None else token for token, *_ in chunk)


def _rows(vectors: Mapping[str, Rows], key: str) -> Rows:
    if isinstance(vectors, WordVectors) and vectors.axis == "layer":
        return LayerRows(vectors[key])
    return vectors[key]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and one == other
