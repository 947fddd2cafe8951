"""The contextualizer ψ: which word is hidden, told from what the text encoder makes of the prompt around it."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ...text.vectors import WordVectors

WIDTH, LAYERS, HEADS = 256, 2, 4


@dataclass(frozen=True)
class Sizes:
    """Of the network. text: width of the text encoder's outputs. words: how many it can tell apart."""

    text: int
    words: int
    width: int = WIDTH
    layers: int = LAYERS
    heads: int = HEADS


class ContextNetwork(nn.Module):
    """Self-attention in both directions over the outputs of a text encoder, then a linear layer to words."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.norm = nn.LayerNorm(sizes.text)
        self.narrow = nn.Linear(sizes.text, sizes.width)
        layer = nn.TransformerEncoderLayer(sizes.width, sizes.heads, 4 * sizes.width, dropout=0.0, activation="gelu",
                                           batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, sizes.layers, nn.LayerNorm(sizes.width), enable_nested_tensor=False)
        self.words = nn.Linear(sizes.width, sizes.words)

    def forward(self, outputs: Tensor, left_out: Tensor) -> Tensor:
        """Logits (rows, T, words) from the text encoder's outputs (rows, T, C) in float32; left_out (rows, T):
        positions that are not looked at, such as padding."""
        return self.words(self.layers(self.narrow(self.norm(outputs)), src_key_padding_mask=left_out))


@dataclass(frozen=True, eq=False)
class Contextualizer:
    """A trained ψ with its mask embedding.

    name: of its file, for messages. encoder: fingerprint of the text encoder that it was trained on. sizes: of the
    network. weights: its state, float32. vocabulary: (words,) the encoder's number of each word. mask: the mask
    embedding, (1, d) for each encoder. figures: what its training reached, such as "accuracy". made_of: digest of all
    that it depends on.
    """

    name: str
    encoder: str
    sizes: Sizes
    weights: Mapping[str, Tensor]
    vocabulary: Tensor
    mask: WordVectors
    figures: Mapping[str, float]
    made_of: str = ""

    @cached_property
    def network(self) -> ContextNetwork:
        """On the CPU, frozen."""
        with torch.inference_mode(False):
            network = ContextNetwork(self.sizes)
            network.load_state_dict({name: weight.clone() for name, weight in self.weights.items()})
            return network.eval().requires_grad_(False)

    @cached_property
    def places(self) -> dict[int, int]:
        """Number in the encoder's vocabulary → place among the words."""
        return {word: place for place, word in enumerate(self.vocabulary.tolist())}
