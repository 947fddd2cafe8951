"""Words that mean something else to every cross-attention layer, in a prompt that is encoded once for each (XTI, P+).

The CONDITIONING stays one of an ordinary prompt: its context and pooled output are the means over the layers, and its
options carry what each layer reads. So nodes that know nothing of layers see a prompt as long as it is written: words
stay where they are, a ControlNet gets one text, and areas, masks, timestep ranges and joined conditionings work as
ever.
`attention.by_layer` lets a MODEL read them; without it the mean is drawn with.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .taught import Taught, made
from .vectors import mean_of

_Module = nn.Module if TYPE_CHECKING else object
LAYERS = "personalize_layers"  # in a CONDITIONING's options, {"mean", "each"}
Tokens = Mapping[str, Sequence[Sequence[tuple]]]


@dataclass(frozen=True, eq=False)
class LayerVector:
    """Stands in the place of a token. by_layer: (layers, d)."""

    by_layer: Tensor

    @cached_property
    def mean(self) -> Tensor:
        """(d,)."""
        return mean_of(self.by_layer)


class LayerRows:
    """What a CLIP is taught in the place of vectors (n, d): vectors (layers, n, d)."""

    def __init__(self, vectors: Tensor):
        self.shape = tuple(vectors.shape[1:])
        self._rows = [LayerVector(by_layer) for by_layer in vectors.unbind(1)]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> LayerVector:
        return self._rows[index]


def reading_by_layer(encoders: nn.Module) -> nn.Module:
    """A view of a CLIP's text encoders, which are shared, that encodes prompts with LayerVectors."""
    return made(_ReadingByLayer, encoders)


def layers_beside(contexts: Sequence[Tensor]) -> Tensor:
    """What layers read, (rows, T, C) each, as one tensor (rows, T, L·C) that ComfyUI handles like a context."""
    return torch.stack(list(contexts), 2).flatten(2)


def text_of_layer(each: Tensor, layers: int, order: int) -> Tensor:
    """(rows, T, C), what one layer reads of `layers_beside` so many."""
    return each.unflatten(2, (layers, -1))[:, :, order].contiguous()


class _ReadingByLayer(Taught, _Module):
    def encode_token_weights(self, token_weight_pairs: Tokens) -> tuple:
        """(context, pooled output, options). Each layer's prompt is encoded by itself, so that its context is bit for
        bit that of a plain word with the layer's vectors."""
        read = super().encode_token_weights  # ty: ignore[missing-attribute]  of ComfyUI's class
        layers = _layers_in(token_weight_pairs)
        if not layers:
            return read(token_weight_pairs)
        contexts, pooled, *_ = zip(*(read(_at(token_weight_pairs, layer))[:2] for layer in range(layers)), strict=True)
        mean = mean_of(contexts)
        return (mean, None if pooled[0] is None else mean_of(pooled),
                {LAYERS: {"mean": mean, "each": layers_beside(contexts)}})


def _layers_in(tokens: Tokens) -> int:
    """0 where no word has vectors for each."""
    return next((len(token.by_layer) for chunks in tokens.values() for chunk in chunks for token, *_ in chunk
                 if isinstance(token, LayerVector)), 0)


def _at(tokens: Tokens, layer: int) -> dict[str, list[list[tuple]]]:
    """The prompt as one layer reads it."""
    def read(token: Any) -> Any:
        return token.by_layer[layer] if isinstance(token, LayerVector) else token

    return {key: [[(read(token), *rest) for token, *rest in chunk] for chunk in chunks]
            for key, chunks in tokens.items()}
