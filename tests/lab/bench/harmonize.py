#!/usr/bin/env python3
"""What Self-Attention Swap costs beside plain sampling: processor seconds, rows of the U-Net, memory. See README.md."""
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

PROMPT, SUBJECT = "a photo of a dog swimming in the river", "dog"
SETTINGS = {"words": SUBJECT, "start_percent": 0.2, "end_percent": 1.0, "strength": 1.0, "swap_layers": "all",
            "where": "subject", "mask_method": "Otsu", "threshold": 0.3,
            "mask_layers": "coarse layers", "mask_steps": "all steps so far", "halves": "both",
            "noise": "shared", "guidance": "guided"}
# name of the ratio, settings that differ, the most it may be
RATIOS = (("swap_guided", {}, 2.2), ("swap_unguided", {"guidance": "unguided"}, 1.65),
          ("swap_everywhere", {"where": "everywhere"}, None))
MIB = 2**20


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resolution", type=int, default=256, help="pixels of a picture's side (default 256)")
    parser.add_argument("--batch", type=int, default=1, help="pictures (default 1)")
    parser.add_argument("--steps", type=int, default=5, help="steps of the sampler (default 5)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each kind, in turn (default 5)")
    return parser.parse_args()


def main() -> None:
    """Prints one line per ratio and figure."""
    options = arguments()
    with inprocess.started():
        report(contenders(options), options)


def contenders(options: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """Name → one run of a sampler with guidance, plain and with each kind of swap."""
    import comfy.sample

    from bench import checkpoint
    from personalize.nodes.papers.harmonize.nodes_swap import PersonalizeSelfAttentionSwap
    from personalize.nodes.text.nodes_prompts import PersonalizeEncodeWithSpans

    model, clip = checkpoint.load()
    with torch.inference_mode():
        positive, visual, negative = (PersonalizeEncodeWithSpans.execute(clip, text, "").args[0]
                                      for text in (PROMPT, "fur and ears", ""))
    latent = torch.zeros(options.batch, 4, options.resolution // 8, options.resolution // 8)
    noise = comfy.sample.prepare_noise(latent, 0)

    def sampling(patched) -> Callable[[], torch.Tensor]:
        return torch.inference_mode()(lambda: comfy.sample.sample(
            patched, noise, options.steps, 5.0, "euler", "normal", positive, negative, latent, disable_pbar=True,
                                                                  seed=0))

    swaps = {name: PersonalizeSelfAttentionSwap.execute(model, visual, negative=negative, **{**SETTINGS, **changed})
             for name, changed, _ in RATIOS}
    report_masks(swaps, sampling)
    return {"plain": sampling(model), **{name: sampling(swap.args[0]) for name, swap in swaps.items()}}


def report_masks(swaps: Mapping, sampling: Callable) -> None:
    """Prints the share of pixels inside the masks, on which the cost depends."""
    for name, swap in swaps.items():
        patched, record = swap.args
        sampling(patched)()
        shares = [float(mask.float().mean()) for mask in record.current.masks.values()]
        print(f"{name}: {statistics.mean(shares):.0%} of the pixels are swapped, in {len(shares)} steps")


def report(runs: Mapping[str, Callable[[], object]], options: argparse.Namespace) -> None:
    """Times, counts and prints."""
    from bench.measure import flops, median_ratio, peak_bytes, seconds_in_turn

    seconds = seconds_in_turn(runs, options.rounds, warm_up=1)
    counted, peaks = {name: flops(run) for name, run in runs.items()}, {name: peak_bytes(run)
                                                                        for name, run in runs.items()}
    rows = {name: unet_rows(run) for name, run in runs.items()}
    print(f"{options.resolution} px, batch {options.batch}, {options.steps} steps with guidance, fp32, "
          f"{torch.get_num_threads()} thread, load {os.getloadavg()[0]:.1f}")
    for name in runs:
        print(
            f"{name}: {statistics.median(seconds[name]):.2f} CPU s, {counted[name] / 1e9:.0f} GFLOP, {rows[name]} rows "
            f"of the U-Net, at its peak {peaks[name] / MIB:.0f} MiB of tensors"
        )
    for name, _, most in RATIOS:
        aim = "" if most is None else f" (at most {most})"
        print(f"ratio {name} {median_ratio(seconds, name, 'plain'):.2f}{aim}")
        print(f"figure flops_{name} {counted[name] / counted['plain']:.2f}")
        print(f"figure rows_{name} {rows[name] / rows['plain']:.2f}")
        print(f"figure peak_memory_{name} {peaks[name] / peaks['plain']:.2f}")


def unet_rows(run: Callable[[], object]) -> int:
    """Rows that the U-Net computes in one run."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    counted, forward = [], UNetModel._forward

    def counting(self, x, *args, **kwargs):
        counted.append(len(x))
        return forward(self, x, *args, **kwargs)

    UNetModel._forward = counting
    try:
        run()
    finally:
        UNetModel._forward = forward
    return sum(counted)


if __name__ == "__main__":
    main()
