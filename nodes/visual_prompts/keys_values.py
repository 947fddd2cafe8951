"""Keys and values of visual tokens, computed once for a whole sampling run."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..attention.windows import images_of
from ..families.layers import AttentionLayer


@dataclass(frozen=True, eq=False)
class KeysValues:
    """Keys and values (B, M, channels) of B pictures' tokens in every layer, copied once to where they are used."""

    by_layer: Mapping[AttentionLayer, tuple[Tensor, Tensor]]
    _placed: dict[tuple, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def rows(self, layer: AttentionLayer, query: Tensor, options: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Keys and values for the rows of `query`, of one conditioning: image i of the run's batch gets picture i, in
        turn if there are fewer. options: what the attention patch gets."""
        place = layer, query.device, query.dtype
        if place not in self._placed:
            with torch.inference_mode(False):  # what sampling puts here must also serve training
                keys, values = self.by_layer[layer]
                self._placed[place] = keys.to(query), values.to(query)
        keys, values = self._placed[place]
        images = torch.tensor(images_of(len(query), options)).to(keys.device)
        return keys[images % len(keys)], values[images % len(values)]


def keys_values(layers: Mapping[AttentionLayer, tuple[Tensor, Tensor]], tokens: Tensor) -> KeysValues:
    """Of tokens (B, M, d), given (to_k, to_v) of every layer, each (channels, d)."""
    with torch.inference_mode(False), torch.no_grad():
        return KeysValues({layer: (F.linear(tokens, key.float()), F.linear(tokens, value.float()))
                           for layer, (key, value) in layers.items()})
