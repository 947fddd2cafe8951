"""What a demonstration runs with: the checkpoint, the pictures, and the settings that fit them."""
from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from miniature.data import draw_all
from miniature.prompts import regularization_prompts
from miniature.subjects import public_subjects
from support.paths import PACK, TESTS

MINIATURE = TESTS / "lab" / "miniature" / "weights" / "miniature.safetensors"
MINIATURE_PACK = TESTS / "lab" / "miniature" / "custom_node"
MINIATURE_NOTICE = ("A miniature model of a drawn world stands in for Stable Diffusion: no download, no graphics card. "
                    "For real pictures give your own --checkpoint.")
FOREIGN_NOTICE = ("Photographs are foreign to it: this run shows that every part works, its pictures are no likeness.")
SDXL_MARK = "conditioner.embedders.1.model.token_embedding.weight"

OWN = "my-subject"
DRAWN = "my-dog"

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
    setting = _own_checkpoint(options, base) if options.checkpoint else _miniature(options, base)
    if options.images:
        shutil.copytree(options.images, base / "input" / OWN)
        _use_pictures(setting.values, OWN, options.class_word, f"a photo of <{OWN}> on a pebble beach")
    return setting


def _use_pictures(values: Values, name: str, class_word: str, prompt: str) -> None:
    values["PersonalizeSubject"]["folder"] = name
    values["PersonalizeTrain"]["name"] = name
    values |= {"PersonalizeConcept": {"placeholder": f"<{name}>", "class_words": class_word},
               "PersonalizePromptSet": {"kind": "universal"}, "PersonalizeSaveConcept": {"name": name},
               "Prompt": {"text": prompt}}


def _miniature(options: argparse.Namespace, base: Path) -> Setting:
    """The committed miniature, with a subject that it has never seen unless there are pictures of one's own."""
    values = _values(128, options.steps or 200, batch_size=4, variants=1, previews=4, draw_steps=20)
    values["PersonalizeSubject"]["augmentation"] = "none"
    values["PersonalizeTrain"]["preview_prompt"] = "a photo of a {}"
    name, packs = _link(MINIATURE, base), {"personalize": PACK, "miniature": MINIATURE_PACK}
    if options.images:
        return Setting(name, values, True, f"{MINIATURE_NOTICE} {FOREIGN_NOTICE}", packs)
    dog = next(subject for subject in public_subjects() if subject.identity.kind == "dog")
    folder = base / "input" / DRAWN
    folder.mkdir(parents=True)
    for number, drawing in enumerate(draw_all(dog.sets["varied"]), 1):
        Image.fromarray(drawing.picture).save(folder / f"{number}.png")
    _use_pictures(values, DRAWN, "dog", f"a photo of a <{DRAWN}> next to a ball on the beach")
    templates = [template for kind in regularization_prompts("dog").values() for template in kind]
    values["PersonalizePromptSet"] = {"kind": "none", "own_prompts": "\n".join(templates)}
    return Setting(name, values, True, MINIATURE_NOTICE, packs)


def _own_checkpoint(options: argparse.Namespace, base: Path) -> Setting:
    name = _link(options.checkpoint, base)
    size = 1024 if SDXL_MARK in _tensor_names(options.checkpoint) else 512
    values = _values(size, options.steps or 300, batch_size=6, variants=16, previews=6, draw_steps=25)
    return Setting(name, values, False)


def _link(checkpoint: Path, base: Path) -> str:
    link = base / "models" / "checkpoints" / checkpoint.name
    link.parent.mkdir(parents=True)
    link.symlink_to(checkpoint)
    return link.name


def _values(size: int, steps: int, batch_size: int, variants: int, previews: int, draw_steps: int) -> Values:
    """The workflow's settings scaled to `steps`: CoRe rescales from 40 % to 60 % of the run."""
    often = max(1, steps // previews)
    return {"PersonalizeSubject": {"size": size, "variants": variants},
            "PersonalizeTrainEmbedding": {"rescale_first_step": steps * 2 // 5 + 1,
                                          "rescale_last_step": steps * 3 // 5},
            "PersonalizeTrain": {"preset": "custom", "steps": steps, "batch_size": batch_size, "save_every": often,
                                 "preview_every": often},
            "EmptyLatentImage": {"width": size, "height": size}, "KSampler": {"steps": draw_steps}}


def _tensor_names(checkpoint: Path) -> set[str]:
    if checkpoint.suffix == ".ckpt":
        return set()
    with open(checkpoint, "rb") as file:
        return set(json.loads(file.read(int.from_bytes(file.read(8), "little"))))
