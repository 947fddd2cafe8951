"""From what an image encoder sees of a picture to a word for one of its attributes (Eq. 3)."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AttributeMapper(nn.Module):
    """v = M(E(x)): three linear layers, 1 771 776 parameters from CLIP ViT-L's 768 to CLIP-L's 768.

    The paper says no more than their number and 6.7 MB. Here features have the length 1, LeakyReLU stands between the
    layers, and the last bias starts at a word's own vector, so that every picture begins near that word.
    """

    def __init__(self, seen: int, width: int):
        """seen: of the image encoder's features. width: of the text encoder's vectors."""
        super().__init__()
        self.first, self.second, self.third = nn.Linear(seen, width), nn.Linear(width, width), nn.Linear(width, width)

    @property
    def seen(self) -> int:
        """Numbers of the features."""
        return self.first.in_features

    @torch.no_grad()
    def start_at(self, word: Tensor, draw: torch.Generator) -> AttributeMapper:
        """The same mapper with weights as torch draws them, the last bias at `word` (width,), and others at 0."""
        for layer in (self.first, self.second, self.third):
            bound = layer.in_features ** -0.5
            layer.weight.uniform_(-bound, bound, generator=draw)
            layer.bias.zero_()
        self.third.bias.copy_(word)
        return self

    def forward(self, features: Tensor) -> Tensor:
        """(N, seen) → (N, width)."""
        hidden = F.leaky_relu(self.second(F.leaky_relu(self.first(features))))
        return self.third(hidden)
