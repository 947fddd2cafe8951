#!/usr/bin/env python3
"""What references cost beside plain sampling with guidance: processor seconds, FLOPs, memory, and what saving time
changes in the latent. See README.md."""
from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "KINETO_LOG_LEVEL": "5", "HF_HUB_OFFLINE": "1"}  # before torch

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

sys.path[:1] = [str(Path(__file__).resolve().parents[2] / room) for room in (".", "lab", "tools")]

from support import inprocess

PROMPT, WORD = "a photo of a dog swimming in the river", "dog"
# name of the ratio, how the reference is used, the most it may be for one picture and for four
RATIOS = (("released", {"variant": "released"}, {1: 2.15, 4: 1.45}),
          ("shared", {"variant": "released", "halves": "shared"}, {1: 1.70, 4: 1.32}),
          ("shared_reuse_4", {"variant": "released", "halves": "shared", "reuse": 4}, {1: 1.45, 4: 1.27}),
          ("released_reuse_4", {"variant": "released", "reuse": 4}, {}),
          ("equation_5", {"variant": "paper"}, {}))
WIDTHS = {"narrow": (1, 1, 1, 1), "sd15": (1, 2, 4, 4)}
MIB = 2**20


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", choices=WIDTHS, default="narrow",
                        help="narrow: SD1.5's topology with 320 channels at every level; sd15: its real widths, 5 GB")
    parser.add_argument("--resolution", type=int, default=256, help="pixels of a picture's side (default 256)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4], help="pictures (default 1 4)")
    parser.add_argument("--steps", type=int, default=4, help="steps of the sampler (default 4)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each kind, in turn (default 5)")
    parser.add_argument("--only-flops", action="store_true", help="count, and measure no time")
    return parser.parse_args()


def main() -> None:
    """Prints one line per ratio and figure."""
    options = arguments()
    with inprocess.started():
        models = contenders(options)
        for batch in options.batch:
            report(models, batch, options)


def contenders(options: argparse.Namespace) -> tuple[dict, list, list]:
    """Name → MODEL, plain and with each use of one reference; and the positive and negative prompt."""
    from bench import checkpoint
    from personalize.nodes.families.find import unet_of
    from personalize.nodes.papers.vico.apply import with_references
    from personalize.nodes.papers.vico.blocks import ImageBlocks, layers_at
    from personalize.nodes.papers.vico.references import Reference, Use
    from personalize.nodes.recording.record import Record
    from personalize.nodes.text.nodes_prompts import PersonalizeEncodeWithSpans

    model, clip = checkpoint.load(widths=WIDTHS[options.widths], dtype=torch.float32)
    side = options.resolution // 8
    reference = Reference(torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(1)), WORD)
    models = {"plain": model}
    with torch.inference_mode():
        positive, negative = (PersonalizeEncodeWithSpans.execute(clip, text, "").args[0] for text in (PROMPT, ""))
        for name, use, _ in RATIOS:
            blocks = ImageBlocks(model, layers_at(unet_of(model).layers, "decoder"))
            blocks.draw(torch.Generator().manual_seed(2))
            models[name] = with_references(model, blocks, (), [reference], Use(**use), Record("bench", every_step=True))
    return models, positive, negative


def sampling(model, positive, negative, batch: int, options: argparse.Namespace) -> Callable[[], torch.Tensor]:
    """One run of a sampler with guidance."""
    import comfy.sample

    latent = torch.zeros(batch, 4, options.resolution // 8, options.resolution // 8)
    noise = comfy.sample.prepare_noise(latent, 0)
    return torch.inference_mode()(lambda: comfy.sample.sample(
        model, noise, options.steps, 5.0, "euler", "karras", positive, negative, latent, disable_pbar=True, seed=0))


def report(contending: tuple[dict, list, list], batch: int, options: argparse.Namespace) -> None:
    """Times, counts and prints."""
    from bench.measure import flops, median_ratio, peak_bytes, seconds_in_turn

    models, *prompts = contending
    runs = {name: sampling(model, *prompts, batch, options) for name, model in models.items()}
    print(f"{options.widths}, {options.resolution} px, batch {batch}, {options.steps} steps with guidance, fp32, "
          f"{torch.get_num_threads()} thread, load {os.getloadavg()[0]:.1f}", flush=True)
    counted = {name: flops(run) for name, run in runs.items()}
    for name, _, _ in RATIOS:
        print(f"figure flops_{name}_{batch} {counted[name] / counted['plain']:.2f}", flush=True)
    if options.only_flops:
        return
    seconds = seconds_in_turn(runs, options.rounds, warm_up=1)
    peaks = {name: peak_bytes(run) for name, run in runs.items()}
    latents = {name: run() for name, run in runs.items()}
    for name in runs:
        print(f"{name}: {statistics.median(seconds[name]):.2f} CPU s, {counted[name] / 1e9:.0f} GFLOP, at its peak "
              f"{peaks[name] / MIB:.0f} MiB of tensors")
    for name, _, most in RATIOS:
        aim = f" (at most {most[batch]:.2f})" if batch in most else ""
        print(f"ratio {name}_{batch} {median_ratio(seconds, name, 'plain'):.2f}{aim}")
        print(f"figure peak_memory_{name}_{batch} {peaks[name] / peaks['plain']:.2f}")
        print(f"figure error_{name}_{batch} {distance(latents, name):.4f}, where plain has "
              f"{distance(latents, 'plain'):.4f}", flush=True)


def distance(latents: Mapping[str, torch.Tensor], name: str) -> float:
    """Of the latent from the one as released, as share of its length."""
    return float((latents[name] - latents["released"]).norm() / latents["released"].norm())


if __name__ == "__main__":
    main()
