"""What the settings files of a BLIP-Diffusion folder say of its encoder."""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..foreign.text import parse_json, read_text, short, shown_path
from .blip_diffusion import ACTIVATIONS

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
HEAD_WIDTH = 64  # where no config.json says how many heads there are
MOST_BYTES = 2**20


def read_settings(folder: Path, width: int, hidden: int, eps: float) -> dict[str, Any]:
    """picture_heads, query_heads, eps, activation, mean and std of the encoder in a folder.

    width, hidden: of the vision transformer and of the Q-Former. eps: where no file names one.
    Raises ValueError with one sentence if a file is damaged or says what cannot be.
    """
    path = folder / "qformer" / "config.json"
    config, index_path = _read(path), folder / "model_index.json"
    vision, qformer, index = (_part(path, config, "vision_config"), _part(path, config, "qformer_config"),
                              _read(index_path))
    # The library transformers takes gelu where a config.json names none.
    activation = vision.get("hidden_act", "gelu" if vision else "quick_gelu")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(f"{shown_path(path)} names the activation {short(str(activation))}, expected one of "
                         f"{', '.join(ACTIVATIONS)}; take the file of Salesforce/blipdiffusion.")
    picture_heads, query_heads = (
        _checked(path, "num_attention_heads", part.get("num_attention_heads", max(1, size // HEAD_WIDTH)),
                 lambda heads, size=size: type(heads) is int and 0 < heads <= size and size % heads == 0)
        for part, size in ((vision, width), (qformer, hidden)))
    eps = _checked(path, "layer_norm_eps", vision.get("layer_norm_eps", eps), lambda eps: _number(eps) and 0 < eps < 1)
    mean = _checked(index_path, "mean", index.get("mean") or MEAN, _three)
    std = _checked(index_path, "std", index.get("std") or STD, lambda std: _three(std) and min(std) > 1e-3)
    return {"picture_heads": picture_heads, "query_heads": query_heads, "eps": eps, "activation": activation,
            "mean": mean, "std": std}


def _read(path: Path) -> dict[str, Any]:
    """What a settings file says; nothing if it is not there."""
    if not path.exists():
        return {}
    text = read_text(path, MOST_BYTES)
    try:
        return dict(parse_json(text.encode()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{shown_path(path)} is damaged ({error}); download it again.") from error


def _part(path: Path, config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return _checked(path, name, config.get(name, {}), lambda part: isinstance(part, dict))


def _checked(path: Path, name: str, value: Any, is_possible: Callable[[Any], bool]) -> Any:
    if not is_possible(value):
        raise ValueError(f"{shown_path(path)} says that {name} is {short(str(value))}, which cannot be; take the file "
                         "of Salesforce/blipdiffusion.")
    return value


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _three(values: Any) -> bool:
    return (isinstance(values, list) and len(values) == 3
            and all(_number(value) and abs(value) < 1e3 for value in values))
