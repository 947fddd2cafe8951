#!/usr/bin/env python3
"""How much harder CoRe's losses pull as released than by Eqs. 3–4: the factors in nodes/papers/core/presets.py.

At the very first step every one of them is zero and flat, because training starts from the class word. So one step of
the diffusion loss is taken (AdamW, 0.005), and the gradients of the four losses in the vector are measured in the
second, for the same prompt, pictures, noise and timesteps.
"""
from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch

import argparse
import statistics
import sys
from pathlib import Path

import torch

sys.path[:1] = [str(Path(__file__).resolve().parents[2] / room) for room in (".", "lab", "tools")]

from support import inprocess
from support.paths import PACK

SIZED = "sd15-size"
LOSSES = ("embedding", "attention")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", nargs="+", default=["sd15", "sd21", "sdxl", SIZED],
                        help=f"kinds of random checkpoints, {SIZED} for one with a text encoder of real size, or files")
    parser.add_argument("--pictures", type=Path, default=PACK / "workflows" / "assets" / "example-toy")
    parser.add_argument("--class-words", default="toy")
    parser.add_argument("--size", type=int, default=64, help="pixels of a picture's side (default 64)")
    parser.add_argument("--batch", type=int, default=6, help="rows of a step (default 6, as released)")
    parser.add_argument("--runs", type=int, default=20, help="seeds: prompts, noise, timesteps (default 20)")
    return parser.parse_args()


def main() -> None:
    """Prints per checkpoint and loss the median factor and its quartiles."""
    options = arguments()
    with inprocess.started() as base, torch.inference_mode():
        for name in options.checkpoint:
            model, clip, vae = checkpoint(name, base)
            ratios = [factors(model, clip, vae, subject(options), options.batch, seed) for seed in range(options.runs)]
            for loss in LOSSES:
                low, middle, high = statistics.quantiles([ratio[loss] for ratio in ratios], n=4)
                print(f"{name} {loss}_factor {middle:.4g} (quartiles {low:.4g} to {high:.4g}; {options.runs} runs of "
                      f"batch {options.batch}, {options.size} px)", flush=True)


def checkpoint(name: str, base: Path):
    """(MODEL, CLIP, VAE) of a kind or a file."""
    if name == SIZED:
        from bench import checkpoint as sized

        return *sized.load(), inprocess.load_checkpoint(inprocess.provide_checkpoint("sd15", base)).vae
    if Path(name).is_file():
        from miniature.models import register

        register()
        link = base / "models" / "checkpoints" / Path(name).name
        link.symlink_to(Path(name).resolve())
        return inprocess.load_checkpoint(link.name)
    return inprocess.load_checkpoint(inprocess.provide_checkpoint(name, base))


def subject(options: argparse.Namespace):
    """The pictures as a Subject whose concept starts from its class words."""
    import numpy as np
    from PIL import Image, ImageOps

    from personalize.nodes.text.concept import Concept
    from personalize.nodes.training.batch import Subject
    from support.pictures import MadePicture

    paths = sorted(p for p in options.pictures.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    pictures = [ImageOps.fit(Image.open(path).convert("RGB"), (options.size, options.size)) for path in paths]
    return Subject(Concept("<my-subject>", options.class_words, options.class_words),
                   tuple(MadePicture(torch.from_numpy(np.asarray(p, np.float32) / 255)[None]) for p in pictures))


def factors(model, clip, vae, of, rows: int, seed: int) -> dict[str, float]:
    """Loss → norm of the released formula's gradient over that of the equation's."""
    from personalize.nodes.papers.core.terms import ContextAttentionLoss, ContextEmbeddingLoss
    from personalize.nodes.text.prompts import bundled
    from personalize.nodes.training.assembly import open_training
    from personalize.nodes.training.diffusion import DiffusionLoss
    from personalize.nodes.training.gradient_norms import GradientNorms
    from personalize.nodes.training.parts.embedding import EmbeddingPart
    from personalize.nodes.training.plan import Plan, Settings
    from personalize.nodes.training.recipe import TemplateRecipe

    templates, later = bundled("universal").templates, (2, 2)
    terms = [DiffusionLoss(window=(1, 1))]
    for formula in ("released", "paper"):
        terms += [ContextEmbeddingLoss(templates, 1.0, formula, later, f"embedding {formula}"),
                  ContextAttentionLoss(templates, 1.0, formula, False, later, f"attention {formula}")]
    settings = Settings(steps=1, batch_size=rows, seed=seed)
    plan = Plan(model, clip, vae, (of,), (EmbeddingPart(),), tuple(terms), TemplateRecipe(), settings)
    with open_training(plan) as trainer:
        trainer.run(lambda *_: True)
        measured = GradientNorms(trainer.parts)
        trainer.objective.backward_alone(trainer.batch(2), measured)
    norms = measured.norms()
    return {loss: norms[f"{loss} released|embedding"] / norms[f"{loss} paper|embedding"] for loss in LOSSES}


if __name__ == "__main__":
    main()
