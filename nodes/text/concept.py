"""The CONCEPT that travels on wires: a placeholder word and the vectors it stands for."""
from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .encoder_kinds import TextEncoder
from .encoders import clip_vocabulary, text_encoders
from .vectors import WordVectors

FORBIDDEN_IN_PLACEHOLDER = re.compile(r"[\s(){}\[\]:,\\]")


@dataclass(frozen=True)
class Concept:
    """A subject's name in prompts and what it stands for.

    placeholder: word used in prompts, e.g. "<my-dog>"; no white space, brackets, colon, comma or backslash.
    class_words: what the subject is, one or several words ("dog", "teddy bear").
    init_words: words whose embedding rows start the training; ignored once there are vectors.
    count: number n of vectors, 1 or more.
    vectors: float32 on the CPU, (n, d) or with an axis of layers; empty while nothing has been learned or loaded.
    settings: how the vectors were made; saved into the metadata of files.
    """

    placeholder: str
    class_words: str
    init_words: str
    count: int = 1
    vectors: WordVectors = field(default_factory=WordVectors)
    settings: Mapping[str, str] = field(default_factory=dict)

    def with_vectors(self, vectors: Mapping[str, Tensor], settings: Mapping[str, str] | None = None) -> Concept:
        """The same concept with other vectors, WordVectors or encoder key → (n, d), and n as its count."""
        axis = vectors.axis if isinstance(vectors, WordVectors) else None
        tensors = {key: value.detach().to("cpu", torch.float32).clone() for key, value in vectors.items()}
        kept = WordVectors(tensors, axis)
        return replace(self, vectors=kept, count=kept.count or self.count, settings=dict(settings or self.settings))


def check_placeholder(placeholder: str, class_words: str) -> None:
    """Raises ValueError with one sentence if `placeholder` cannot be told apart from ordinary prompt text."""
    found = f"Placeholder '{placeholder}'"
    if not placeholder:
        raise ValueError("Placeholder is empty; name your subject with a made-up word such as <my-dog>.")
    if FORBIDDEN_IN_PLACEHOLDER.search(placeholder):
        raise ValueError(f"{found} contains a space, bracket, colon, comma or backslash, which prompts use for "
                         "other things; write it as one word such as <my-dog>.")
    if "//" in placeholder or "/*" in placeholder:
        raise ValueError(f"{found} contains // or /*, which begin comments that ComfyUI's page takes out of prompts; "
                         "write it as one word such as <my-dog>.")
    if placeholder.lower() in class_words.lower().split():
        raise ValueError(f"{found} equals the class word '{class_words}'; give the subject a name of its own, "
                         f"such as <my-{placeholder.strip('<>').lower()}>.")
    if not any(letter.isalnum() for letter in placeholder):
        raise ValueError(f"{found} has no letter or digit; name your subject with a made-up word such as <my-dog>.")
    if is_dictionary_word(placeholder):
        raise ValueError(f"{found} is a word the text encoder already knows; put it in angle brackets, "
                         f"<{placeholder}>, so that prompts can still use the ordinary word.")


def is_dictionary_word(word: str) -> bool:
    """Whether CLIP's byte-pair vocabulary holds `word` as a single token."""
    return f"{word.lower()}</w>" in clip_vocabulary()


def initial_vectors(concept: Concept, clip) -> WordVectors:
    """The concept's vectors for each encoder of `clip`: the learned ones, else the rows of its initial words.

    Float32 on the CPU. With fewer initial tokens than vectors the last row is repeated.
    Raises ValueError if learned vectors miss an encoder or have another width.
    """
    return WordVectors({encoder.key: _vectors_for(concept, encoder) for encoder in text_encoders(clip)},
                       concept.vectors.axis)


def plain_vectors(concept: Concept, clip, remedy: str) -> WordVectors:
    """The same, for what needs one meaning of a word. Raises ValueError if it has one for each layer, with the rest of
    the sentence: which such a use cannot have, and what to do."""
    if concept.vectors.axis is not None:
        raise ValueError(f"Concept {concept.placeholder} has vectors for each layer of a model, which {remedy}.")
    return initial_vectors(concept, clip)


def check_layers(placeholder: str, vectors: WordVectors, layers: int) -> None:
    """Raises ValueError if a word has vectors for each of more or fewer layers than so many."""
    found = next((len(rows) for rows in vectors.values()), layers)
    if vectors.axis == "layer" and found != layers:
        raise ValueError(f"Concept {placeholder} has vectors for {found} layers but this model has {layers}; use a "
                         "model of the kind that it was trained on.")


def _vectors_for(concept: Concept, encoder: TextEncoder) -> Tensor:
    if not concept.vectors:
        return _rows_of_words(concept, encoder)
    if encoder.key not in concept.vectors:
        raise ValueError(f"Concept {concept.placeholder} has vectors for {', '.join(concept.vectors)} but this CLIP "
                         f"needs {encoder.key}; train it on a checkpoint of this family.")
    vectors = concept.vectors[encoder.key]
    if vectors.shape[-1] != encoder.width:
        raise ValueError(f"Concept {concept.placeholder} has vectors of width {vectors.shape[-1]} for {encoder.key} "
                         f"but this CLIP's width is {encoder.width}; train it on a checkpoint of this family.")
    if not vectors.isfinite().all():
        raise ValueError(f"Concept {concept.placeholder} has vectors that are not numbers for {encoder.key}; load an "
                         "earlier step, or train it again.")
    return vectors.clone()


def _rows_of_words(concept: Concept, encoder: TextEncoder) -> Tensor:
    ids = encoder.word_ids(concept.init_words or concept.class_words)
    if not ids:
        raise ValueError(f"Concept {concept.placeholder} has neither initial words nor class words; write what it is, "
                         "for example dog.")
    ids = (ids + [ids[-1]] * concept.count)[:concept.count]
    rows = encoder.table[ids].detach().to("cpu", torch.float32).clone()
    if not rows.isfinite().all():
        raise ValueError(f"The text encoder {encoder.key} holds no numbers for "
                         f"'{concept.init_words or concept.class_words}'; "
                         "its file is damaged: load it again, or another one.")
    return rows
