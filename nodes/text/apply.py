"""Teaching a CLIP's tokenizer new words without a file: prompts may then hold placeholders like any other word."""
from __future__ import annotations

import copy
import re
from types import SimpleNamespace
from typing import Mapping, Sequence

from torch import Tensor

from comfy.sd1_clip import SDTokenizer

from .concept import Concept, initial_vectors
from .encoders import text_encoders

# ComfyUI 0.16 returns (embedding, leftover), later versions (embedding, name, leftover).
_NO_EMBEDDING = SDTokenizer._try_get_embedding(
    SimpleNamespace(embedding_directory=[], embedding_size=1, embedding_key=""), "none")
# ComfyUI refuses to look outside its folders, so no file can be meant by a name that starts like this.
_NO_FILE = "../personalize-"


def clip_with_vectors(clip, vectors: Mapping[str, Mapping[str, Tensor]]):
    """A clone of `clip` whose prompts understand placeholders; `clip` itself is unchanged.

    vectors: placeholder → encoder key → (n, d). A placeholder is found anywhere in a prompt, also weighted, before
    punctuation and more than once. Encoding it equals encoding `embedding:name` of a file with the same vectors.
    """
    encoders = text_encoders(clip)
    taught = clip.clone()
    taught.tokenizer = copy.copy(clip.tokenizer)
    for encoder in encoders:
        rows = {placeholder: by_encoder[encoder.key] for placeholder, by_encoder in vectors.items()}
        setattr(taught.tokenizer, encoder.attribute, _taught(encoder.tokenizer, rows))
    return taught


def apply_concepts(clip, concepts: Sequence[Concept]):
    """A clone of `clip` that understands the placeholders of `concepts`; one without vectors means its initial words.

    Raises ValueError if a concept is for another family of models, or has vectors per layer.
    """
    vectors = {concept.placeholder: initial_vectors(concept, clip) for concept in concepts}
    for placeholder, by_encoder in vectors.items():
        if any(rows.ndim != 2 for rows in by_encoder.values()):
            raise ValueError(f"Concept {placeholder} has other vectors for every layer, which a CLIP cannot carry; "
                             "connect a concept that Train or Load Concept gives.")
    return clip_with_vectors(clip, vectors)


def _taught(tokenizer: SDTokenizer, rows: Mapping[str, Tensor]) -> SDTokenizer:
    taught = copy.copy(tokenizer)
    taught.embedding_directory = tokenizer.embedding_directory or []
    taught.placeholder_rows = {**getattr(tokenizer, "placeholder_rows", {}), **rows}
    if not taught.placeholder_rows:
        return taught
    names = {placeholder: f"{_NO_FILE}{i}" for i, placeholder in enumerate(taught.placeholder_rows)}
    by_name = {name: taught.placeholder_rows[placeholder] for placeholder, name in names.items()}
    pattern = re.compile("|".join(placeholder_pattern(p) for p in sorted(names, key=len, reverse=True)))
    kind = type(tokenizer)

    def tokenize_with_weights(text: str, *args, **kwargs):
        return kind.tokenize_with_weights(taught, pattern.sub(lambda m: f" embedding:{names[m[0]]} ", text),
                                          *args, **kwargs)

    def find_embedding(text: str):
        name, _, leftover = text.partition(" ")
        if name not in by_name:
            return tokenizer._try_get_embedding(text)
        return (by_name[name], name, leftover.strip())[::2 if len(_NO_EMBEDDING) == 2 else 1]

    taught.tokenize_with_weights = tokenize_with_weights
    taught._try_get_embedding = find_embedding
    return taught


def placeholder_pattern(placeholder: str) -> str:
    """Regular expression that finds `placeholder` in a prompt, but not inside a longer word."""
    before = r"(?<!\w)" if re.match(r"\w", placeholder[0]) else ""
    after = r"(?!\w)" if re.match(r"\w", placeholder[-1]) else ""
    return before + re.escape(placeholder) + after
