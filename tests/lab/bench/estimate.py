#!/usr/bin/env python3
"""How far what Train says before Run, counted from a file's header, is from what its steps then take.

Ratios estimated / measured: FLOPs and peak bytes of tensors of a step beyond the models, the device's speed as a short
computation shows it, and CPU seconds of other objectives by the speed of the first. Small random checkpoints, and the
miniature with --miniature."""
from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "KINETO_LOG_LEVEL": "5", "HF_HUB_OFFLINE": "1"}  # before torch

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path[:1] = [str(Path(__file__).resolve().parents[2] / room) for room in (".", "lab", "tools")]

from support import inprocess

MIB = 2**20


def main() -> None:
    """Prints one line per model and objective."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128, help="pixels of a picture's side (default 128)")
    parser.add_argument("--rows", type=int, default=2, help="pictures of a step (default 2)")
    parser.add_argument("--steps", type=int, default=5, help="steps that are timed (default 5)")
    parser.add_argument("--miniature", type=Path, help="a checkpoint of the miniature")
    options = parser.parse_args()
    with inprocess.started() as base:
        files = [inprocess.provide_checkpoint(kind, base) for kind in ("sd15", "sdxl")]
        if options.miniature:
            link = base / "models" / "checkpoints" / options.miniature.name
            link.symlink_to(options.miniature.resolve())
            files.append(link.name)
        for name in files:
            compare(name, options)


def compare(name: str, options: argparse.Namespace) -> None:
    """One model, with the diffusion loss alone and with CoRe's."""
    import folder_paths

    from bench import ours
    from personalize.nodes.training.counted import counted
    from personalize.nodes.training.estimate import LOOKING, flops_of
    from personalize.nodes.training.foreseen import Foreseen
    from personalize.nodes.training.idle import Setting
    from personalize.nodes.training.plan import Settings
    from personalize.nodes.training.speed import speed_of

    path, models = Path(folder_paths.get_full_path("checkpoints", name)), inprocess.load_checkpoint(name)
    started = time.perf_counter()
    each = counted(path, "", options.size, "auto", False)
    print(f"{name}: counted in figure count_seconds {time.perf_counter() - started:.2f}")
    speed = None
    for kind in ("embedding", "core_exact", "core_estimator"):
        terms = ours.TERMS[kind]
        training = Setting(Settings(1, options.rows), (), terms, None, ())
        flops = flops_of(Foreseen(training, options.size, "auto", {}), each)
        kept_of_row = each.kept * (LOOKING if kind != "embedding" else 1)
        real, kept, seconds = measured(models, terms, options)
        if speed is None:
            speed = flops / seconds
            print(f"{name}: ratio speed {speed_of(each.dtype) / speed:.2f} of {speed / 1e9:.0f} GFLOP/s")
        where = f"{name} {kind}, {options.size} px, {options.rows} pictures"
        memory = options.rows * kept_of_row / kept
        print(f"{where}: ratio flops {flops / real:.2f}, ratio memory {memory:.2f} of {kept / MIB:.0f} MiB, ratio time "
              f"{flops / speed / seconds:.2f} of {seconds:.3f} s", flush=True)


def measured(models, terms, options: argparse.Namespace) -> tuple[int, int, float]:
    """FLOPs, bytes beyond the models, and CPU seconds of a step."""
    from bench import measure, ours
    from personalize.nodes.families.latents import latent_space
    from personalize.nodes.training.session import training_session

    space = latent_space(models.model)
    side = options.size // space.factor
    latents = torch.randn(options.rows, space.channels, side, side, generator=torch.Generator().manual_seed(0))
    with training_session(models.model, models.clip) as session:
        session.load()
        with ours.training_step(session, latents, terms, one_prompt=True) as step:
            step()
            flops, kept, seconds = measure.flops(step), measure.peak_bytes(step), []
            for _ in range(options.steps):
                started = time.process_time()
                step()
                seconds.append(time.process_time() - started)
    return flops, kept, statistics.median(seconds)


if __name__ == "__main__":
    main()
