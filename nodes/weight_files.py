"""Weights in files that others wrote, read without running any code in them."""
from __future__ import annotations

import pickle
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Iterator, Mapping

import safetensors
import torch
from safetensors import SafetensorError
from torch import Tensor


def read_weights(path: Path, kind: str) -> tuple[Any, dict[str, str]]:
    """What a .safetensors file or a torch pickle holds, on the CPU, and the metadata of a .safetensors file.

    kind: what the file should be, for messages: "embedding file". Raises ValueError with one sentence if it is damaged
    or holds more than tensors, lists and dicts.
    """
    path = Path(path)
    try:
        if path.suffix.lower() in (".safetensors", ".sft"):
            with safetensors.safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})
        with _parameter_dicts_allowed():
            return torch.load(path, map_location="cpu", weights_only=True), {}
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            raise ValueError(f"{path.name} is a pickle that holds more than plain tensors and could run code when "
                             "opened, so it was not opened; get it as .safetensors, or convert it where you trust "
                             "it.") from error
        raise damaged(path, kind) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, LookupError, TypeError, AttributeError) as error:
        raise damaged(path, kind) from error


def read_state_dict(path: Path, kind: str) -> dict[str, Tensor]:
    """Tensors by name; those inside dicts of dicts get names joined by dots. Raises ValueError as `read_weights`."""
    content, _ = read_weights(path, kind)
    if not isinstance(content, Mapping):
        raise damaged(path, kind)
    return dict(_flat(content, ""))


def damaged(path: Path, kind: str) -> ValueError:
    """The sentence for a file that is not what it should be."""
    return ValueError(f"{Path(path).name} is damaged or no {kind}; download or save it again.")


def _flat(content: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, Tensor):
            yield f"{prefix}{name}", value.detach()


def _parameter_dicts_allowed():
    """Textual Inversion and ViCo save a ParameterDict: a module class without code of its own in what it restores."""
    allow = getattr(torch.serialization, "safe_globals", None)
    return allow([torch.nn.ParameterDict]) if allow else nullcontext()
