"""Files of trained image blocks: the authors' own and this pack's, which differ in what they say of themselves."""
from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import folder_paths
import torch
from torch import Tensor

from ...families.find import unet_of
from ...families.layers import AttentionLayer
from ...families.unet import TRANSFORMER_NAME
from ...foreign.text import parse_json, short, shown_name
from ...model_files import folder_of, register_folder
from ...text.concept import Concept
from ...weight_files import check_numbers, damaged, read_weights
from .blocks import MODULE, ImageBlocks, parameter_shapes
from .maths import Variant

FOLDER = "vico"
KIND = "ViCo file"
FILE = "image-blocks"  # file name of this pack's own files, before the step
FORMAT = "vico"  # value of the metadata key "format" in this pack's own files
_KEY = re.compile(rf"(?:model\.)?({TRANSFORMER_NAME}\.{MODULE}\.)(.+)")

LARGEST_SIDE, WIDEST_TEXT = 16_384, 65_536  # of what a file says of its training

Block = tuple[str, int]


@dataclass(frozen=True, eq=False)
class ViCo:
    """Trained image blocks as a file holds them.

    source: the file's name, for messages.
    blocks: U-Net block, such as ("output", 4), → name within its image block → tensor.
    variant: how they were trained to use the object mask.
    words: placeholders that they were trained with; empty if the file does not say.
    size: side in pixels of the pictures that they were trained on.
    text_width: width of the text encodings of the model that they were trained on.
    """

    source: str
    blocks: Mapping[Block, Mapping[str, Tensor]]
    variant: Variant
    words: tuple[str, ...]
    size: int
    text_width: int

    def blocks_for(self, model, dtype: torch.dtype) -> ImageBlocks:
        """The image blocks as modules for `model`. Raises ValueError if they were trained on another kind of model."""
        text_width = unet_of(model).text_width
        layers = [layer for layer in _last_layers(model) if layer.block in self.blocks]
        here = {layer.block: layer.channels for layer in layers}
        trained = {block: _width(tensors) for block, tensors in self.blocks.items()}
        if here != trained or text_width != self.text_width:
            raise ValueError(f"{self.source} was trained on another kind of model: with text of width "
                             f"{self.text_width} and blocks {_described(trained)}, where this model has text of width "
                             f"{text_width} and {_described(here) or 'no such block'}. Load a checkpoint of the "
                             "kind that it was trained on.")
        modules = ImageBlocks(model, layers, dtype)
        modules.fill(self.blocks)
        return modules


# The authors trained on Stable Diffusion 1.4 with pictures of 512 × 512; their files do not say so.
OFFICIAL: Mapping[str, Any] = {"variant": "released", "words": (), "size": 512, "text_width": 768}


def read_vico(path: Path) -> ViCo:
    """What a file of trained image blocks holds.

    Raises ValueError with one sentence if it cannot be read safely, or holds no image blocks or not whole ones.
    """
    content, metadata = read_weights(path, KIND)
    if not isinstance(content, Mapping):
        raise damaged(path, KIND)
    blocks: dict[Block, dict[str, Tensor]] = {}
    for name, tensor in content.items():
        if isinstance(tensor, Tensor) and (match := _KEY.fullmatch(str(name))):
            block = blocks.setdefault((match[2], int(match[3])), {})
            if match[4] in block:
                raise ValueError(f"{shown_name(path.name)} holds {match[4]} of {match[2]} block {match[3]} twice; get "
                                 "another file.")
            block[match[4]] = tensor
    if not blocks:
        raise ValueError(f"{shown_name(path.name)} holds no image blocks of ViCo; choose a file that Train has saved "
                         "in models/vico, or one of the authors' cross_attention files.")
    for block, tensors in blocks.items():
        _check_whole(path, block, tensors)
        check_numbers(path, tensors.items())
    return ViCo(path.name, blocks, **(_said(path, metadata) if metadata.get("format") == FORMAT else OFFICIAL))


def metadata_of(variant: Variant, words: tuple[str, ...], size: int, model) -> dict[str, str]:
    """What this pack's own files say of themselves."""
    return {"format": FORMAT, "variant": variant, "words": json.dumps(words), "size": str(size),
            "text_width": str(unet_of(model).text_width)}


def file_of_run(concept: Concept) -> Path:
    """Path of the image blocks that were trained and saved together with a concept's vectors.

    Raises ValueError if the concept does not come from such a training, or the file is gone.
    """
    run, step = (concept.settings.get(name, "") for name in ("run", "step"))
    if not run or not re.fullmatch(r"[0-9]{1,9}", step):
        raise ValueError(f"Concept {concept.placeholder} does not say which training it comes from; choose a file of "
                         "models/vico.")
    name = f"{run}/{FILE}-{int(step):06d}.safetensors"
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        raise ValueError(f"There is no {name} in {folder_of(FOLDER)}: Train ViCo was not part of the training of "
                         f"{concept.placeholder}, or the file has been deleted. Choose another file or step.")
    return Path(path)


def _check_whole(path: Path, block: Block, tensors: Mapping[str, Tensor]) -> None:
    named = "norm1.weight" in tensors and tensors["norm1.weight"].ndim == 1
    shapes = parameter_shapes(_width(tensors)) if named and _width(tensors) else {}
    odd = next((name for name in sorted(shapes.keys() | tensors.keys())
                if name not in shapes or name not in tensors or tensors[name].shape != shapes[name]), None)
    if odd is not None or not shapes:
        raise ValueError(f"The image block {block[0]} {block[1]} of {shown_name(path.name)} is not whole (look at "
                         f"{odd or 'norm1.weight'}); download or save the file again.")


def _said(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        said = {"variant": metadata["variant"], "words": tuple(parse_json(metadata["words"].encode())),
                "size": int(metadata["size"]), "text_width": int(metadata["text_width"])}
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, KIND) from error
    if (not 1 <= said["size"] <= LARGEST_SIDE or not 1 <= said["text_width"] <= WIDEST_TEXT
            or not all(isinstance(word, str) for word in said["words"])):
        raise damaged(path, KIND)
    if said["variant"] not in get_args(Variant):
        raise ValueError(
            f"{shown_name(path.name)} was trained with the object mask '{short(said['variant'])}', which this version "
            "of the pack does not know; update the pack."
        )
    return said


def _last_layers(model) -> list[AttentionLayer]:
    """The last layer of every block with cross-attention, in execution order."""
    return list({layer.block: layer for layer in unet_of(model).layers}.values())


def _width(tensors: Mapping[str, Tensor]) -> int:
    return len(tensors["norm1.weight"])


def _described(widths: Mapping[Block, int]) -> str:
    return ", ".join(f"{side} {number} ({width})" for (side, number), width in widths.items())


register_folder(FOLDER, folder_paths.supported_pt_extensions)
