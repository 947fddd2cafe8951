"""Where a U-Net starts that is given another text encoder: it draws nearly what it drew."""
from __future__ import annotations

import random

import torch

from .data import scenes
from .grammar import caption
from .network import TextEncoder

CAPTIONS = 256
CONTEXT_KEYS = ("attn2.to_k.weight", "attn2.to_v.weight")


@torch.no_grad()
def give_text(networks: torch.nn.ModuleDict, text: TextEncoder) -> None:
    """Put ``text`` in the place of the miniature's own. Keys and values of the words read its outputs through the
    linear map to what comes nearest to the old one's, and the picture encoder's tokens go the other way."""
    towards_old = nearest_map(text, networks["text"])
    for name, weight in networks["unet"].named_parameters():
        if name.endswith(CONTEXT_KEYS):
            weight.copy_(weight @ towards_old)
    away = torch.linalg.pinv(towards_old)
    picture = networks["picture"]
    picture.deviation.weight.copy_(away @ picture.deviation.weight)
    picture.deviation.bias.copy_(away @ picture.deviation.bias)
    picture.mean.copy_(picture.mean @ away.T)
    networks["text"] = text


def nearest_map(one: TextEncoder, other: TextEncoder) -> torch.Tensor:
    """(128, 128): the linear map of ``one``'s outputs that comes nearest to ``other``'s, at the words of captions."""
    tokens = one.tokens(captions("captions for another text encoder"))
    words = ~one.ends(tokens)
    return linear_map(one(tokens)[words], other(tokens)[words])


def captions(seed: str) -> list[str]:
    """Of scenes that training sees, to fit a map on."""
    rng = random.Random(seed)
    return [caption(scene, rng) for scene in scenes(CAPTIONS, "train", 0)]


def linear_map(given: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """(d, d): what takes rows of ``given`` (n, d) nearest to those of ``wanted``."""
    return torch.linalg.lstsq(given, wanted).solution.T
