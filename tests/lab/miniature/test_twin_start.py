"""The twin's start compared with the miniature that it is made from."""
from __future__ import annotations

import random

import pytest
import torch
from safetensors.torch import load_file

from miniature.autoencoder import WEIGHTS
from miniature.checkpoint import load_networks
from miniature.data import scenes
from miniature.grammar import caption
from miniature.network import new_networks, new_networks_xl
from miniature.twin_start import start_twin

MINIATURE = WEIGHTS.with_name("miniature.safetensors")
DEEP = "input_blocks.5.1"  # one transformer block in the miniature, two in the twin


@pytest.fixture(scope="module")
def both():
    """(miniature, twin that starts from it)."""
    miniature, twin = new_networks(), new_networks_xl()
    load_networks(miniature, load_file(MINIATURE))
    start_twin(twin, miniature_file=MINIATURE)
    return miniature.eval(), twin.eval()


@torch.no_grad()
def test_a_deep_transformer_does_what_the_shallow_one_did(both):
    shallow, deep = (networks["unet"].get_submodule(DEEP) for networks in both)
    assert len(deep.transformer_blocks) == 2 * len(shallow.transformer_blocks)
    features = torch.randn(2, 128, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(deep(features, torch.zeros(2, 7, 256)), shallow(features, torch.zeros(2, 7, 128)))


@torch.no_grad()
@pytest.mark.parametrize("projection", ["to_k", "to_v"])
def test_words_say_nearly_what_they_said(both, projection):
    """Of captions that the map was not fitted to; the start token, which says nothing, left out."""
    miniature, _twin = both
    rng = random.Random("captions that the twin has not seen")
    tokens = miniature["text"].tokens([caption(scene, rng) for scene in scenes(32, "held_out", 3)])
    said = []
    for networks in both:
        layer = networks["unet"].get_submodule(f"{DEEP}.transformer_blocks.0.attn2.{projection}")
        said.append(layer(networks["text"].condition(tokens)[0])[:, 1:12])
    assert float((said[0] - said[1]).norm() / said[0].norm()) < 0.4
    assert float((said[0] - said[1].roll(1, 0)).norm() / said[0].norm()) > 0.6
