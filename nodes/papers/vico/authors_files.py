"""Image blocks and their word as the scripts of ViCo's authors read them (github.com/haoosz/ViCo, vico_txt2img.py)."""
from __future__ import annotations

from itertools import count
from pathlib import Path

import folder_paths
import torch

from ...families.unet import transformer_name_in_sd1
from ...files import holds_bytes, torch_bytes, write_torch
from ...names import safe_name
from ...text.concept import Concept
from ...text.embedding_layouts import AUTHORS_SCRIPTS, LAYOUTS
from .blocks import MODULE
from .files import ViCo

DECODER = {("output", number) for number in (4, 6, 8, 10)}  # of Stable Diffusion 1.x: the only ones that they read
RELEASED_STEPS = 400


def save_for_authors(vico: ViCo, concept: Concept, name: str) -> tuple[Path, int]:
    """Writes output/vico/<name>/checkpoints/cross_attention-<n>.pt and embeddings_gs-<n>.pt.

    Returns the folder for their --ft_path and n for their --load_step: the steps that the concept was trained less one,
    399 if it does not say. "-2", "-3", … is added to a name whose files of this step hold something else.
    Raises ValueError if their scripts could not read it, OSError if a file cannot be written.
    """
    if set(vico.blocks) != DECODER:
        raise ValueError(
            f"{vico.source} has image blocks in other places than the decoder of Stable Diffusion 1.x, and "
            "the authors' scripts would pass over them; train on SD1.x with placement decoder."
        )
    if not concept.vectors:
        raise ValueError(
            f"Concept {concept.placeholder} has learned nothing yet; connect the concept that Train gives."
        )
    if set(concept.vectors) != {"clip_l"}:
        raise ValueError(
            f"Concept {concept.placeholder} has vectors for {' and '.join(concept.vectors)}, but the authors' "
            "scripts draw with Stable Diffusion 1.x, whose text encoder is clip_l; train on SD1.x."
        )
    blocks = {f"{transformer_name_in_sd1(block)}.{MODULE}.{part}": tensor.to("cpu", torch.float32)
              for block, tensors in vico.blocks.items() for part, tensor in tensors.items()}
    steps = concept.settings.get("step", "")
    step = int(steps if steps.isdecimal() else RELEASED_STEPS) - 1
    files = {f"embeddings_gs-{step}.pt": LAYOUTS[AUTHORS_SCRIPTS].of(concept.placeholder, concept.vectors),
             f"cross_attention-{step}.pt": blocks}
    folder = _free_folder(safe_name(name, "The name"), {file: torch_bytes(content) for file, content in files.items()})
    for file, content in files.items():
        write_torch(folder / "checkpoints" / file, content)
    return folder, step


def _free_folder(name: str, files: dict[str, bytes]) -> Path:
    """The first of <name>, <name>-2, … with no such files, or with this content."""
    root = Path(folder_paths.get_output_directory()) / "vico"
    folders = (root / (name if number == 1 else f"{name}-{number}") for number in count(1))
    return next(folder for folder in folders if _may_hold(folder / "checkpoints", files))


def _may_hold(folder: Path, files: dict[str, bytes]) -> bool:
    return all(not (folder / file).exists() or holds_bytes(folder / file, content) for file, content in files.items())
