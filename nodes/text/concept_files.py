"""Concepts to and from embedding files."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .concept import Concept, check_placeholder
from .embedding_files import MARK, file_stem, load_embedding, save_embedding
from .embedding_layouts import SAFETENSORS
from .encoder_kinds import TextEncoder

LONGEST_MADE_UP = 40  # letters of a file's name that become a word
_FIELDS = ("placeholder", "class_words", "init_words")
_NOT_SETTINGS = {*_FIELDS, MARK, "token", "name", "format"}


def save_concept(concept: Concept, name: str, layout: str = SAFETENSORS) -> Path:
    """Writes the concept's vectors and settings as an embedding file of that name and layout, see `save_embedding`.

    Raises ValueError if it has no vectors, or one per layer; else as `save_embedding`.
    """
    if not concept.vectors:
        raise ValueError(f"Concept {concept.placeholder} has learned nothing yet; connect the concept that Train "
                         f"gives.")
    return save_embedding(name, concept.vectors, concept_metadata(concept), layout=layout)


def concept_metadata(concept: Concept) -> dict[str, str]:
    """What an embedding file says of the concept, for `load_concept`."""
    return {**concept.settings, **{field: getattr(concept, field) for field in _FIELDS}}


def load_concept(path: Path, placeholder: str = "", class_words: str = "", encoders: Sequence[TextEncoder] = ()
                 ) -> Concept:
    """The concept in an embedding file of any known tool.

    placeholder, class_words: "" takes what the file says; without that the placeholder is made of the file's name.
    encoders: of the CLIP the concept is for, see `load_embedding`.
    Raises ValueError as `load_embedding` and `check_placeholder` do.
    """
    vectors, said = load_embedding(path, encoders)
    class_words = class_words or said.get("class_words", "")
    placeholder = placeholder or _placeholder(said, path, class_words)
    check_placeholder(placeholder, class_words)
    settings = {key: value for key, value in said.items() if key not in _NOT_SETTINGS}
    return Concept(placeholder, class_words, said.get("init_words", class_words)).with_vectors(vectors, settings)


def _placeholder(said: Mapping[str, str], path: Path, class_words: str) -> str:
    for candidate in (said.get("placeholder", ""), said.get("token", "")):
        try:
            check_placeholder(candidate, class_words)
            return candidate
        except ValueError:
            continue
    return f"<{file_stem(path.stem[:LONGEST_MADE_UP])}>"
