"""Attention of chosen tokens seen while a sampler runs, without changing what the U-Net computes."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..families.attention import Attention
from ..families.layers import AttentionLayer, Place, place_in
from ..text.pairs import keys_of
from .softmax import chosen_keys

Options = Mapping[str, Any]


@dataclass(frozen=True)
class TokenGroups:
    """Tokens of one conditioning whose attention is wanted, in n groups such as words.

    positions: per group the positions of its tokens in the conditioning, counted over all chunks, start token at 0.
    length: tokens T of the conditioning.
    pairs: whether it holds each of them twice, as text.pairs says; both count as one.
    """

    positions: tuple[tuple[int, ...], ...]
    length: int
    pairs: bool = False

    def keys(self, context: Tensor) -> Tensor:
        """(rows, T or copies of T, C) from a context that other patches may have taken apart already."""
        return keys_of(context) if self.pairs else context

    def in_copies(self, keys: int) -> list[list[int]]:
        """Positions per group among this number of keys: ComfyUI repeats a context so that it fits longer ones."""
        copies = max(keys // self.length, 1) if keys % self.length == 0 else 1
        return [[copy * self.length + position for position in group for copy in range(copies)]
                for group in self.positions]


class MapCapture:
    """Attention patch (ModelPatcher.set_model_attn2_patch) that reads attention maps and returns its inputs unchanged.

    Queries and keys are projected once more, so it works beside replaced attention; the keys are those of the context
    as the patches before this one left it. Softmax in float32.

    layers: given the block's options, the layers to look at by place, with their attention in the U-Net that runs;
        empty for none.
    wanted: given the block's options, the TokenGroups of each conditioning wanted, by its index in
        options["cond_or_uncond"]; empty to look at nothing.
    found: gets the layer, the index of the conditioning, its maps (rows, n, h, w), float32 on the model's device, and
        the options. A map is the mean over heads of the attention of each pixel to the tokens of a group together.

    Holds no state of a run: `found` decides where maps go.
    """

    def __init__(self, layers: Callable[[Options], Mapping[Place, tuple[AttentionLayer, Attention]]],
                 wanted: Callable[[Options], Mapping[int, TokenGroups]],
                 found: Callable[[AttentionLayer, int, Tensor, Options], None]):
        self._layers, self._wanted, self._found = layers, wanted, found

    def __call__(self, n: Tensor, context: Tensor, value: Tensor, options: Options) -> tuple[Tensor, Tensor, Tensor]:
        """n: (rows, pixels, channels); context, value: (rows, T, C)."""
        found = self._layers(options).get(place_in(options))
        if found is not None:
            layer, attention = found
            rows = rows_of_each(n, options)
            for index, groups in (self._wanted(options) if rows else {}).items():
                part = slice(index * rows, (index + 1) * rows)
                text = groups.keys(context[part])
                if text.shape[1] < groups.length:
                    continue
                query, key = attention.queries(n[part]), attention.keys(text)
                maps = _group_maps(query, key, layer.heads, groups)
                self._found(layer, index, maps.unflatten(-1, tuple(options["activations_shape"][-2:])), options)
        return n, context, value


def put_first(model, kind: str) -> None:
    """Lets the newest of a model's patches of this kind see rows and pixels as the U-Net gives them, before patches
    that change their number."""
    lists = model.model_options["transformer_options"]["patches"]
    *others, newest = lists[kind]
    lists[kind] = [newest, *others]


def step_of(options: Options) -> int:
    """Step (0 …) of the sampler's schedule that the running call belongs to, also between two steps as second-order
    samplers make them."""
    schedule, sigma = options["sample_sigmas"], options["sigmas"][0]
    step = int((schedule >= sigma * (1 - 1e-5)).sum()) - 1
    return min(max(step, 0), max(len(schedule) - 2, 0))


def rows_of_each(tensor: Tensor, options: Options) -> int:
    """Rows of each conditioning in what an attention patch gets (rows, pixels, channels); 0 if another patch has
    changed rows or pixels so that they cannot be told apart."""
    height, width = options["activations_shape"][-2:]
    return rows_told(len(tensor), options) if tensor.shape[1] == height * width else 0


def rows_told(rows: int, options: Options) -> int:
    """Rows of each conditioning, of so many that the U-Net or a part of it gets; 0 if another node has changed their
    number without saying so in the options."""
    count = len(options["cond_or_uncond"])
    expected = len(options["sigmas"]) if "sigmas" in options else rows // count
    return expected if rows == count * expected and len(options.get("uuids", range(count))) == count else 0


def _group_maps(query: Tensor, key: Tensor, heads: int, groups: TokenGroups) -> Tensor:
    """(rows, n, pixels); a context's copies are added up."""
    tokens = [(group, position) for group, positions in enumerate(groups.in_copies(key.shape[1]))
              for position in positions]
    index = torch.tensor([token for _, token in tokens], device=query.device).expand(query.shape[0], -1)
    of_group = torch.tensor([group for group, _ in tokens], device=query.device)
    found = chosen_keys(query, key, heads, index)
    summed = found.new_zeros(*found.shape[:2], len(groups.positions)).index_add_(-1, of_group, found)
    return summed.transpose(1, 2)
