"""ELITE's two files, global_mapper.pt and local_mapper.pt, as its authors publish them."""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from comfy.utils import unet_to_diffusers
from torch import Tensor

from ..families.find import unet_of
from ..families.layers import AttentionLayer
from ..foreign.text import short, shown_name
from ..weight_files import check_numbers, damaged, read_state_dict, shapes_of
from .elite import LAYERS, mapped_patches, mapped_word

KIND = "ELITE mapper"
PARTS = ("to_k", "to_v")
_ATTENTION = re.compile(r"(.+)_(to_k|to_v)\.weight")


@dataclass(frozen=True, eq=False)
class Mapper:
    """One file: a network from CLIP Vision's states to tokens, and keys and values for these.

    name: of the file, for messages. network: its weights. keys_values: layer's name in diffusers with "_" for "." →
    (to_k, to_v).
    """

    name: str
    network: Mapping[str, Tensor]
    keys_values: Mapping[str, tuple[Tensor, Tensor]]

    @property
    def vision_width(self) -> int:
        """Width w of the states that it reads."""
        return self.network["mapping_0.0.weight"].shape[1]

    @property
    def token_width(self) -> int:
        """Width d of the tokens that it gives."""
        return self.network["mapping_0.6.weight"].shape[0]


@dataclass(frozen=True, eq=False)
class Elite:
    """Both files."""

    of_word: Mapper
    of_patches: Mapper

    def word(self, states: Sequence[Tensor]) -> Tensor:
        """(B, 1, d) from the states (B, 1 + P, w) of the layers LAYERS, seeing the whole picture."""
        return mapped_word(self.of_word.network, states[0])

    def patches(self, states: Sequence[Tensor], mask: Tensor) -> Tensor:
        """(B, P, d) from the states of the layers LAYERS, seeing the subject alone; mask: (B, P)."""
        return mapped_patches(self.of_patches.network, states, mask)

    def layers_of(self, model) -> list[Layer]:
        """Where the files' keys and values go in a MODEL. Raises ValueError if they are for another."""
        places = _places(model)
        width = unet_of(model).text_width
        for mapper in (self.of_word, self.of_patches):
            if {name for _, name in places.values()} != set(mapper.keys_values) or any(
                    part.shape != (layer.channels, width) for layer, (_, name) in places.items()
                    for part in mapper.keys_values[name]):
                raise ValueError(f"{mapper.name} is made for a model with {len(mapper.keys_values)} attention layers "
                                 f"and text of width {mapper.token_width}, as SD1.x, but this model has {len(places)} "
                                 f"and {width}; use an SD1.x checkpoint.")
        return [Layer(layer, prefix, self.of_word.keys_values[name], self.of_patches.keys_values[name])
                for layer, (prefix, name) in places.items()]


@dataclass(frozen=True, eq=False)
class Layer:
    """One cross-attention. prefix: of its weights' keys in the MODEL. text, local: (to_k, to_v), each (channels, d)."""

    layer: AttentionLayer
    prefix: str
    text: tuple[Tensor, Tensor]
    local: tuple[Tensor, Tensor]


def read_elite(global_file: Path, local_file: Path) -> Elite:
    """Raises ValueError with one sentence if a file is damaged, foreign, or in the other's place."""
    for path, role, other in ((global_file, "global", "local"), (local_file, "local", "global")):
        if other in path.stem.lower() and role not in path.stem.lower():
            raise ValueError(f"{shown_name(path.name)} is chosen as the {role} mapper but its name says {other}; "
                             "choose global_mapper.pt for the one and local_mapper.pt for the other.")
    mappers = [_read_mapper(path) for path in (global_file, local_file)]
    if len({(mapper.vision_width, mapper.token_width) for mapper in mappers}) > 1:
        raise ValueError(f"{mappers[0].name} and {mappers[1].name} do not belong together: their tokens have width "
                         f"{mappers[0].token_width} and {mappers[1].token_width}; use two files of one training.")
    return Elite(*mappers)


def _read_mapper(path: Path) -> Mapper:
    tensors = read_state_dict(path, KIND)
    network = {name: tensor for name, tensor in tensors.items() if name.startswith("mapping_")}
    names = [match[1] for name in tensors if (match := _ATTENTION.fullmatch(name)) and match[2] == PARTS[0]]
    if not network or not names:
        shown = ", ".join(map(short, list(tensors)[:3])) or "no tensor"
        raise ValueError(f"{shown_name(path.name)} is no ELITE mapper: found {shown}, expected mapping_0.0.weight and "
                         "down_blocks_0_…_attn2_to_k.weight; choose global_mapper.pt or local_mapper.pt.")
    try:
        keys, values = ([tensors[f"{name}_{part}.weight"] for name in names] for part in PARTS)
        mapper = Mapper(shown_name(path.name), network, dict(zip(names, zip(keys, values))))
        check_numbers(path, network.items())
        for name, pair in mapper.keys_values.items():
            check_numbers(path, ((name, part) for part in pair))
            _check_pair(mapper, pair)
        _try_out(mapper)
    except (LookupError, RuntimeError) as error:
        raise damaged(path, KIND) from error
    return mapper


def _check_pair(mapper: Mapper, pair: tuple[Tensor, Tensor]) -> None:
    key, value = pair
    if key.ndim != 2 or key.shape != value.shape or key.shape[1] != mapper.token_width:
        raise RuntimeError("keys and values do not fit the tokens")


def _try_out(mapper: Mapper) -> None:
    """Runs the network on shapes alone, so that missing or misshapen weights raise."""
    network = shapes_of(mapper.network)
    states = [torch.zeros(1, 2, mapper.vision_width, device="meta")] * len(LAYERS)
    made = mapped_word(network, states[0]), mapped_patches(network, states, torch.ones(1, 1, device="meta"))
    if any(tokens.shape[-1] != mapper.token_width for tokens in made):
        raise RuntimeError("the networks give tokens of different widths")


def _places(model) -> dict[AttentionLayer, tuple[str, str]]:
    """Each layer's key in the MODEL and its name in the files: diffusers' with "_" for "."."""
    unet = unet_of(model)
    theirs = {ours: name for name, ours in unet_to_diffusers(model.model.model_config.unet_config).items()}
    places = {}
    for layer in unet.layers:
        key = unet.cross_attention_name(layer)
        weight = f"{key}.to_k.weight".removeprefix("diffusion_model.")
        places[layer] = key, theirs.get(weight, weight).removesuffix(".to_k.weight").replace(".", "_")
    return places
