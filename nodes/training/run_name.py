"""What a run is called that nobody has named."""
from __future__ import annotations

from collections.abc import Sequence

from ..text.embedding_files import file_stem
from .batch import Subject
from .parts.part import TrainablePart


def run_name(subjects: Sequence[Subject], parts: Sequence[TrainablePart]) -> str:
    """The first subject's word, and what is trained beside vectors: "my-dog", "my-dog-lora"."""
    labels = dict.fromkeys(part.label for part in parts)
    return "-".join(filter(None, [file_stem(subjects[0].concept.placeholder), *labels]))
