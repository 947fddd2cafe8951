"""The shipped workflows, made quick, and a server that has the files they name."""
from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from authoring.graphs import CHECKPOINT, EMBEDDING

from . import detex_files, encoder_files, vico_files
from .paths import PACK
from .workflows import with_values

ALL_SHIPPED = sorted((PACK / "workflows").glob("*.json"))
SHIPPED = [path for path in ALL_SHIPPED if "subgraphs" not in path.read_text(encoding="utf-8")]  # of nodes alone
QUICK = {
    "PersonalizeSubject": {"size": 64, "variants": 1}, "EmptyLatentImage": {"width": 64, "height": 64},
    "KSampler": {"steps": 2},
    "PersonalizeTrain": {"preset": "custom", "steps": 3, "batch_size": 1, "save_every": 2, "preview_every": 3},
    "PersonalizeValidation": {"prompts": "a photo of {}", "size": 64, "sampling_steps": 1},
    "PersonalizeCoReTestTime": {"steps": 2},
    "Rich prompts": {"count": 300},
    "PersonalizeTrainContextualizer": {"steps": 2, "width": 32, "depth": 1},
    "PersonalizePriorPictures": {"picture_count": 1, "sampling_steps": 1}}


def provide_files(base: Path, checkpoint: str, widths: Mapping[str, int]) -> None:
    """Small checkpoints, encoders and an embedding under the names that the workflows use.

    checkpoint: file in models/checkpoints that stands for the one that the workflows name. widths: of its text
    encoders, by the keys of embedding files. What ViCo, DETEX and the picture encoders read is for SD1.x
    alone.
    """
    models = base / "models"
    link = models / "checkpoints" / CHECKPOINT
    if link.exists():
        return
    link.symlink_to(checkpoint)
    (models / "embeddings").mkdir(exist_ok=True)
    draw = torch.Generator().manual_seed(0)
    vectors = {key: 0.02 * torch.randn(1, width, generator=draw) for key, width in widths.items()}
    save_file(vectors, models / "embeddings" / EMBEDDING, {"placeholder": "<example-toy>", "class_words": "toy"})
    encoder_files.provide(base)
    vico_files.provide(base)
    detex_files.provide(base)


def quick(path: Path, definitions: dict) -> dict:
    """The workflow with few steps and small pictures. definitions: what /object_info answers."""
    document = json.loads(path.read_text(encoding="utf-8"))
    known = {name for node in document["nodes"] for name in (node["type"], node.get("title"))}
    return with_values(document, definitions, {name: values for name, values in QUICK.items() if name in known})
