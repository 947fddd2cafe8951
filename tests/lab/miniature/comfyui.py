"""Finds a ComfyUI and makes its modules importable in this process."""
from __future__ import annotations

import os
import sys
from pathlib import Path

import torch


def use_comfyui(path: str | os.PathLike[str] | None = None) -> None:
    """Put ComfyUI's root on the module path (argument, else COMFYUI_PATH, else as already importable).

    Without a GPU ComfyUI must be told to stay on the CPU. Raises ValueError when it is not there.
    """
    root = path or os.environ.get("COMFYUI_PATH")
    if root is not None:
        if not (Path(root) / "comfy" / "sd.py").is_file():
            raise ValueError(f"{root} is no ComfyUI (it has no comfy/sd.py); give its root folder.")
        if str(root) not in sys.path:
            sys.path.insert(0, str(root))
    try:
        from comfy.cli_args import args
    except ImportError:
        raise ValueError("ComfyUI was not found; give its root folder with --comfyui or COMFYUI_PATH.") from None
    if not torch.cuda.is_available():
        args.cpu = True


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fast_half(on: torch.device) -> bool:
    """True where bfloat16 arithmetic is faster than float32: any CUDA card, and processors with instructions for it."""
    return on.type == "cuda" or any(getattr(torch.cpu, name, lambda: False)() for name in (
        "_is_avx512_bf16_supported", "_is_amx_tile_supported"))
