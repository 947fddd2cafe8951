"""What a demonstration runs with: the checkpoint, the pictures, and the settings that fit them."""
from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from support.paths import PACK, TESTS

PLUMBING = ("This is a plumbing run: a small random checkpoint stands in for a real model, so the pictures are noise. "
            "It shows that every part works. For pictures give your own --checkpoint.")
SDXL_MARK = "conditioner.embedders.1.model.token_embedding.weight"

OWN = "my-subject"

Values = dict[str, dict[str, object]]


@dataclass(frozen=True)
class Setting:
    """checkpoint: name for Load Checkpoint. values: node type -> {widget: value} that differ from the workflow's."""

    checkpoint: str
    values: Values
    modest: bool
    notice: str = ""
    packs: dict[str, Path] = field(default_factory=lambda: {"personalize": PACK})


def prepare(options: argparse.Namespace, base: Path) -> Setting:
    """Puts checkpoint and pictures into ComfyUI's base directory `base`."""
    setting = _own_checkpoint(options, base) if options.checkpoint else _small_checkpoint(options, base)
    if options.images:
        shutil.copytree(options.images, base / "input" / OWN)
        _use_own_pictures(setting.values, options.class_word)
    return setting


def _use_own_pictures(values: Values, class_word: str) -> None:
    values["PersonalizeSubject"]["folder"] = OWN
    values["PersonalizeTrain"]["name"] = OWN
    values |= {"PersonalizeConcept": {"placeholder": f"<{OWN}>", "class_words": class_word},
               "PersonalizePromptSet": {"subject": "universal"}, "PersonalizeSaveConcept": {"name": OWN},
               "Prompt": {"text": f"a photo of <{OWN}> on a pebble beach"}}


def _small_checkpoint(options: argparse.Namespace, base: Path) -> Setting:
    from support import inprocess

    inprocess.start(base)
    name = inprocess.provide_checkpoint("sd15_stock", base)
    values = _values(128, options.steps or 20, batch_size=2, variants=2, previews=2, draw_steps=8)
    return Setting(name, values, True, PLUMBING)


def _own_checkpoint(options: argparse.Namespace, base: Path) -> Setting:
    link = base / "models" / "checkpoints" / options.checkpoint.name
    link.parent.mkdir(parents=True)
    link.symlink_to(options.checkpoint)
    size = 1024 if SDXL_MARK in _tensor_names(options.checkpoint) else 512
    values = _values(size, options.steps or 300, batch_size=6, variants=16, previews=6, draw_steps=25)
    return Setting(link.name, values, False)


def _values(size: int, steps: int, batch_size: int, variants: int, previews: int, draw_steps: int) -> Values:
    """The workflow's settings scaled to `steps`: CoRe rescales from 40 % to 60 % of the run."""
    often = max(1, steps // previews)
    return {"PersonalizeSubject": {"size": size, "variants": variants},
            "PersonalizeTrainEmbedding": {"rescale_from": steps * 2 // 5, "rescale_to": steps * 3 // 5},
            "PersonalizeTrain": {"preset": "custom", "steps": steps, "batch_size": batch_size, "save_every": often,
                                 "preview_every": often},
            "EmptyLatentImage": {"width": size, "height": size}, "KSampler": {"steps": draw_steps}}


def _tensor_names(checkpoint: Path) -> set[str]:
    if checkpoint.suffix == ".ckpt":
        return set()
    with open(checkpoint, "rb") as file:
        return set(json.loads(file.read(int.from_bytes(file.read(8), "little"))))
