#!/usr/bin/env python3
"""What a step of DETEX costs beside one of Custom Diffusion with as many rows and prompts, a caption for each picture:
processor seconds of one thread, in turn, and counted FLOPs, on SD1.5's topology with CLIP-L and CLIP ViT-L of the real
size. See README.md."""
from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "KINETO_LOG_LEVEL": "5", "HF_HUB_OFFLINE": "1"}  # before torch

import argparse
import itertools
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

sys.path[:1] = [str(Path(__file__).resolve().parents[2] / room) for room in (".", "lab", "tools")]

from support import inprocess, pack

PICTURES, WORD, AIM = 4, "<my-dog>", 1.10
WIDTHS = {"narrow": (1, 1, 1, 1), "sd15": (1, 2, 4, 4)}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", choices=WIDTHS, default="narrow",
                        help="narrow: 320 channels at every level; sd15: the real widths, 8 GB")
    parser.add_argument("--resolution", type=int, default=256, help="pixels of a picture's side (default 256)")
    parser.add_argument("--batch", type=int, default=4, help="rows of a step (default 4, the paper's)")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each kind, in turn (default 5)")
    return parser.parse_args()


def main() -> None:
    """Prints one line per ratio."""
    options = arguments()
    with tempfile.TemporaryDirectory() as base, ExitStack() as opened:
        inprocess.start(Path(base))
        pack.make_importable()
        from bench.measure import flops, median_ratio, seconds_in_turn

        steps = {name: opened.enter_context(training(options, *how))
                 for name, how in {"custom_diffusion": custom_diffusion(), "detex": detex()}.items()}
        counted = {name: statistics.fmean(flops(step) for _ in range(4)) for name, step in steps.items()}
        seconds = seconds_in_turn(steps, options.rounds, warm_up=1)
    where = (f"{options.widths}, {options.resolution} px, {options.batch} rows, fp32, {torch.get_num_threads()} thread,"
             f" load {os.getloadavg()[0]:.1f}")
    for name in steps:
        print(f"{where}: {name}: {statistics.median(seconds[name]):.2f} CPU s a step, {counted[name] / 1e9:.1f} GFLOP")
    print(f"{where}: counted {counted['detex'] / counted['custom_diffusion']:.3f}, at most {AIM}: ratio "
          f"detex_vs_custom_diffusion {median_ratio(seconds, 'detex', 'custom_diffusion'):.3f}", flush=True)


def custom_diffusion() -> tuple:
    """Parts, losses and recipe."""
    from personalize.nodes.training.diffusion import DiffusionLoss
    from personalize.nodes.training.parts.embedding import EmbeddingPart
    from personalize.nodes.training.parts.weights import KeyValuePart
    from personalize.nodes.training.recipe import TemplateRecipe

    return (EmbeddingPart(), KeyValuePart()), (DiffusionLoss(),), TemplateRecipe()


def detex() -> tuple:
    """Parts, losses and recipe, as Train DETEX and Attribute Attention Loss give them."""
    from personalize.nodes.papers.detex.nodes_train import PersonalizeTrainDetex
    from personalize.nodes.papers.detex.terms import AttributeAttentionLoss
    from personalize.nodes.training.diffusion import DiffusionLoss

    parts, recipe = PersonalizeTrainDetex.execute(vision(), "animate", 1e-5, 0.5).args
    return parts, (DiffusionLoss(), AttributeAttentionLoss()), recipe


def vision():
    """CLIP ViT-L/14 with random weights, as Load CLIP Vision gives it."""
    import comfy.clip_vision

    config = Path(comfy.clip_vision.__file__).with_name("clip_vision_config_vitl.json")
    model = comfy.clip_vision.ClipVisionModel(str(config))
    with torch.no_grad():
        for p in model.model.parameters():
            p.normal_(std=0.02)
    return model


@contextmanager
def training(options: argparse.Namespace, parts: tuple, terms: tuple, recipe) -> Iterator[Callable[[], object]]:
    """Consecutive steps of a training with its own models, without those that measure gradients."""
    from bench import checkpoint
    from personalize.nodes.text.concept import Concept
    from personalize.nodes.training.assembly import open_training
    from personalize.nodes.training.batch import Subject
    from personalize.nodes.training.dataset import Dataset, PictureLatents
    from personalize.nodes.training.loop import MEASURE_GRADIENTS_EVERY
    from personalize.nodes.training.plan import Plan, Settings
    from support.pictures import MadePicture

    side, draw = options.resolution // 8, torch.Generator().manual_seed(0)
    mask = torch.zeros(1, 64, 64)
    mask[:, 16:48, 16:48] = 1
    pictures = tuple(MadePicture(torch.rand(1, 64, 64, 3, generator=draw), mask, f"photo {i} of a {WORD} dog")
                     for i in range(PICTURES))
    latents = [PictureLatents(torch.randn(2, 4, side, side, generator=draw), torch.ones(2, 1, side, side))
               for _ in pictures]  # of each picture with and without background
    models = checkpoint.load(widths=WIDTHS[options.widths], dtype=torch.float32)
    plan = Plan(*models, None, (Subject(Concept(WORD, "dog", "dog"), pictures),), parts, terms, recipe,
                Settings(10**6, options.batch))
    numbers = (n for n in itertools.count(2) if n % MEASURE_GRADIENTS_EVERY)
    with open_training(plan, latents=Dataset([latents])) as trainer:
        yield lambda: trainer.optimise(next(numbers))


if __name__ == "__main__":
    main()
