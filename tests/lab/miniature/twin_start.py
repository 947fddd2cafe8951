"""Where the SDXL twin starts: it draws what the miniature draws; what differs between the topologies is learned."""
from __future__ import annotations

import random
from pathlib import Path

import torch
from safetensors.torch import load_file

from .checkpoint import load_networks
from .data import scenes
from .grammar import caption
from .network import new_networks

CAPTIONS = 256
CONTEXT_KEYS = ("attn2.to_k.weight", "attn2.to_v.weight")
RESIDUAL_ENDS = ("to_out.0.weight", "ff.net.2.weight")


@torch.no_grad()
def start_twin(twin: torch.nn.ModuleDict, miniature_file: Path) -> None:
    """Give the twin the weights of the miniature's checkpoint: both text encoders, and of the U-Net all but the last
    convolution (noise there, velocity here). The second blocks of deep transformers add nothing yet. Keys and values of
    the words read the mean of both encoders' penultimate layers, mapped linearly to what comes nearest to the last
    one."""
    miniature = new_networks().to(next(twin.parameters()).device)
    load_networks(miniature, load_file(miniature_file))
    for encoder in (twin["text"].l, twin["text"].g):
        encoder.load_state_dict(miniature["text"].state_dict())
    towards_last = _towards_last(miniature["text"])
    given, own = miniature["unet"].state_dict(), twin["unet"].state_dict()
    for key, weight in own.items():
        if key in given and key.endswith(CONTEXT_KEYS):
            weight.copy_((given[key] @ towards_last / 2).repeat(1, 2))
        elif key in given and not key.startswith("out.2."):
            weight.copy_(given[key].reshape(weight.shape))
        elif ".transformer_blocks." in key and key.endswith(RESIDUAL_ENDS):
            weight.zero_()


def _towards_last(text: torch.nn.Module) -> torch.Tensor:
    """(128, 128): the linear map from the penultimate layer to the last one that fits captions best."""
    rng = random.Random("captions for the twin")
    captions = [caption(scene, rng) for scene in scenes(CAPTIONS, "train", 0)]
    penultimate, last = (state.flatten(0, 1) for state in text.states(text.tokens(captions)))
    return torch.linalg.lstsq(penultimate, last).solution.T
