"""Attention of chosen tokens seen while a sampler runs, without changing what the U-Net computes."""
from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..attention.calls import Options, rows_of_each
from ..attention.softmax import chosen_keys
from ..attention.token_groups import TokenGroups
from ..families.attention import Attention
from ..families.layers import AttentionLayer, Place, place_in


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


def _group_maps(query: Tensor, key: Tensor, heads: int, groups: TokenGroups) -> Tensor:
    """(rows, n, pixels); a context's copies are added up."""
    tokens = [(group, position) for group, positions in enumerate(groups.in_copies(key.shape[1]))
              for position in positions]
    index = torch.tensor([token for _, token in tokens], device=query.device).expand(query.shape[0], -1)
    of_group = torch.tensor([group for group, _ in tokens], device=query.device)
    found = chosen_keys(query, key, heads, index)
    summed = found.new_zeros(*found.shape[:2], len(groups.positions)).index_add_(-1, of_group, found)
    return summed.transpose(1, 2)
