"""Embedding files as other tools and the papers' authors write them, for those who go on there."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

ASTERISK, ITS_TOKEN = "*", 265  # the word of the authors' scripts, and its number in CLIP's vocabulary


@dataclass(frozen=True)
class FileLayout:
    """extension: of the file. content: word, vectors (n, d) → what torch.save writes."""

    extension: str
    content: Callable[[str, Tensor], dict[str, Any]]

    def of(self, word: str, vectors: Mapping[str, Tensor]) -> dict[str, Any]:
        """What a file holds for the vectors of one text encoder. Raises ValueError if there are several."""
        if len(vectors) > 1:
            raise ValueError(
                f"{word} has vectors for {' and '.join(vectors)}, but this format holds one text encoder's; "
                "choose the format safetensors."
            )
        (rows,) = vectors.values()
        return self.content(word, rows.detach().to("cpu", torch.float32).clone())


def _textual_inversion(word: str, rows: Tensor) -> dict[str, Any]:
    return {"string_to_token": {ASTERISK: torch.tensor(ITS_TOKEN)}, "string_to_param": {ASTERISK: rows}, "name": word}


def _authors_scripts(word: str, rows: Tensor) -> dict[str, Any]:
    """With a ParameterDict: the scripts put it in the place of a module, where PyTorch takes no plain dict."""
    parameters = nn.ParameterDict({ASTERISK: nn.Parameter(rows)})
    return {**_textual_inversion(word, rows), "string_to_param": parameters}


def _diffusers(word: str, rows: Tensor) -> dict[str, Any]:
    return {word: rows}


def _core(word: str, rows: Tensor) -> dict[str, Any]:
    return {f"{word}_v{number}": row.clone() for number, row in enumerate(rows)}


SAFETENSORS = "safetensors"
AUTHORS_SCRIPTS = "Textual Inversion scripts (.pt)"
LAYOUTS = {"Textual Inversion (.pt)": FileLayout(".pt", _textual_inversion),
           AUTHORS_SCRIPTS: FileLayout(".pt", _authors_scripts),
           "diffusers (.bin)": FileLayout(".bin", _diffusers),
           "CoRe (.bin)": FileLayout(".bin", _core)}
