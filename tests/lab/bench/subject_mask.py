#!/usr/bin/env python3
"""How well does the attention to a class word find the subject? Overlap with the renderer's masks, by layers, noise and
threshold: what the defaults of Subject Mask and Attention of Latent rest on. See README.md."""
from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # before torch

import argparse
import random
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path[:1] = [str(Path(__file__).resolve().parents[2] / room) for room in (".", "lab", "tools")]

from support import inprocess

SIDE = 128
TIMESTEPS = {"0–199": (50, 150), "200–599": (200, 400), "600–999": (700, 900)}
THRESHOLDS = (0.2, 0.3, 0.4, 0.5)
WEIGHTS = Path(__file__).resolve().parents[1] / "miniature" / "weights" / "miniature.safetensors"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=WEIGHTS, help="the miniature's checkpoint")
    parser.add_argument("--scenes", type=int, default=40, help="held-out pictures (default 40)")
    return parser.parse_args()


def main() -> None:
    """Prints one line per choice of layers and noise: mean intersection over union."""
    options = arguments()
    with inprocess.started(), torch.inference_mode():
        report(*recorded(options.checkpoint, options.scenes))


def recorded(checkpoint: Path, count: int) -> tuple[dict, Tensor]:
    """((timestep, layer) → maps (n, 128, 128), subjects' masks (n, 128, 128)) of pictures with the class word said."""
    import comfy.sd

    from miniature import data, grammar, models
    from personalize.nodes.attention.maps import resized
    from personalize.nodes.attention.words import words_of
    from personalize.nodes.families.find import unet_of
    from personalize.nodes.recording.latent_recorder import record_latent
    from personalize.nodes.recording.record import Record

    models.register()
    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(checkpoint))
    layers, rng = unet_of(model).layers, random.Random(0)
    timesteps = sorted({step for steps in TIMESTEPS.values() for step in steps}, reverse=True)
    maps: dict[tuple, list[Tensor]] = {}
    masks = []
    for scene in data.scenes(count, "held_out", seed=1):
        drawing, word = data.draw_all([scene]), scene.identity.kind
        text = grammar.caption(scene, rng, looks=0.0)
        conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        record = Record("Attention of Latent", every_step=True, complete=True)
        latent = vae.encode(data.pictures_tensor(drawing).movedim(1, -1))
        record_latent(model, conditioning, latent, timesteps, 0, record, layers, words_of([word], clip, text))
        masks.append(data.masks_tensor(drawing)[:, 0] > 0.5)
        for step, timestep in enumerate(timesteps):
            for layer in layers:
                maps.setdefault((timestep, layer), []).append(
                    resized(record.sampling().map(word, layer, step), (SIDE, SIDE)))
    return {key: torch.cat(parts) for key, parts in maps.items()}, torch.cat(masks)


def report(maps: dict, masks: Tensor) -> None:
    """Prints the table."""
    from personalize.nodes.attention.masks import above, otsu

    layers = sorted({layer for _, layer in maps}, key=lambda layer: layer.order)
    choices: dict[str, Callable] = {"all": lambda layer: True}
    choices |= {f"stride {stride}": lambda layer, stride=stride: layer.stride == stride
                for stride in sorted({layer.stride for layer in layers})}
    choices |= {f"layer {layer.order}, stride {layer.stride}": lambda other, layer=layer: other == layer
                for layer in layers}
    print(f"{len(masks)} pictures; everything as foreground: {overlap(torch.ones_like(masks), masks):.3f}")
    print(f"{'layers':20} {'timesteps':10} {'Otsu':>6}" + "".join(f"{threshold:7g}" for threshold in THRESHOLDS))
    for name, chosen in choices.items():
        for span, timesteps in TIMESTEPS.items():
            mean = torch.stack([maps[step, layer] for step in timesteps for layer in layers if chosen(layer)]).mean(0)
            found = [otsu(mean), *(above(mean, threshold) for threshold in THRESHOLDS)]
            print(f"{name:20} {span:10} " + " ".join(f"{overlap(each, masks):6.3f}" for each in found))


def overlap(found: Tensor, masks: Tensor) -> float:
    """Mean over pictures of intersection over union."""
    inside, either = (part.flatten(1).sum(1) for part in (found & masks, found | masks))
    return float((inside / either).mean())


if __name__ == "__main__":
    main()
