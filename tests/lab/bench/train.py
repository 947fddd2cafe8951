#!/usr/bin/env python3
"""How long a training step takes beside diffusers' and ComfyUI's own, what CoRe adds to it, and the memory it needs.

CPU seconds of one thread, measured in turn with the rivals', so that what else the machine does meets all alike; the
ratios are the figures. See README.md here."""
from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "KINETO_LOG_LEVEL": "5", "HF_HUB_OFFLINE": "1"}  # before torch

import argparse
import statistics
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch

sys.path[:1] = [str(Path(__file__).resolve().parents[2] / room) for room in (".", "lab", "tools")]

from support import inprocess

# name of the ratio, ours, against
RATIOS = (("embedding_vs_diffusers", "embedding", "diffusers_script"),
          ("embedding_one_prompt_vs_diffusers", "embedding_one_prompt", "diffusers_script"),
          ("embedding_vs_diffusers_one_vector", "embedding", "diffusers_one_vector"),
          ("core_exact_vs_embedding", "core_exact", "embedding_one_prompt"),
          ("core_estimator_vs_embedding_loss_only", "core_estimator", "embedding_loss_only"))
AGREEMENT = 1e-3
MIB = 2**20


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resolution", type=int, default=128, help="pixels of a picture's side (default 128)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4], choices=range(1, 5), metavar="1…4",
                        help="rows of a step (default 1 4)")
    parser.add_argument("--rounds", type=int, default=9, help="steps of each kind, in turn (default 9)")
    parser.add_argument("--only", choices=("embedding", "lora"), help="one of both parts; embedding needs diffusers")
    return parser.parse_args()


def main() -> None:
    """Prints one line per ratio and figure."""
    options = arguments()
    with inprocess.started() as base:
        from bench import checkpoint

        models = checkpoint.load_file(base / "checkpoint.safetensors")
        for batch in options.batch:
            where = f"{options.resolution} px, batch {batch}, fp32, {torch.get_num_threads()} thread"
            if options.only != "lora":
                conditioning(*models, options.resolution // 8, batch, options.rounds, where)
                embedding(*models, options.resolution // 8, batch, options.rounds, where)
            if options.only != "embedding" and batch == 1:
                lora(*models, options.resolution // 8, options.rounds, where)
        if options.only != "embedding":
            captions(*models)


def embedding(model, clip, side: int, batch: int, rounds: int, where: str) -> None:
    """Textual Inversion beside diffusers, and CoRe beside Textual Inversion."""
    try:
        import diffusers  # noqa: F401
    except ImportError:
        sys.exit("diffusers is not installed for this Python; tests/lab/bench/README.md has the command.")
    from personalize.nodes.training.session import training_session

    with training_session(model, clip) as session, ExitStack() as opened:
        steps = contenders(opened, session, side, batch)
        check_agreement(steps)
        report(steps, where, rounds)


def conditioning(model, clip, side: int, batch: int, rounds: int, where: str) -> None:
    """The denoiser as ComfyUI runs it beside a direct call."""
    from bench.conditioning import extra_conds_ratio
    from personalize.nodes.training.session import training_session

    with training_session(model, clip) as session:
        ratio = extra_conds_ratio(session, random_latents(batch, side), rounds)
    print(f"{where}: forward pass, bound by FLOPs 1.00: ratio extra_conds_vs_direct {ratio:.3f}", flush=True)


def lora(model, clip, side: int, rounds: int, where: str) -> None:
    """A LoRA beside ComfyUI's own Train LoRA node."""
    from bench import beside_core

    beside_core.report(model, clip, random_latents(1, side), rounds, lambda text: print(f"{where}: {text}", flush=True))


def captions(model, clip) -> None:
    """How often a caption is encoded: ten pictures, four rows a step."""
    from bench.captions import encodes_per_prompt
    from personalize.nodes.training.session import training_session

    with training_session(model, clip) as session:
        encoded, seen = encodes_per_prompt(session, random_latents(10, 4), rows=4, steps=12)
    print(f"32 px, batch 4, fp32: {encoded} prompts encoded, bound by different captions {seen}: "
          f"figure captioned_encodes_per_prompt {round(encoded / seen, 2):g}")


def random_latents(batch: int, side: int) -> torch.Tensor:
    """(batch, 4, side, side), always the same."""
    return torch.randn(batch, 4, side, side, generator=torch.Generator().manual_seed(0))


def contenders(opened: ExitStack, session, side: int, batch: int) -> dict:
    """Name → training step, all on the same latents (batch, 4, side, side), while `opened` is."""
    from bench import checkpoint
    from bench import diffusers_side as theirs
    from bench.ours import TERMS, training_step
    from support.diffusers_models import PLACEHOLDER, text_encoder_like, unet_like

    latents = random_latents(batch, side)

    def ours(terms: str, one_prompt: bool):
        return opened.enter_context(training_step(session, latents, TERMS[terms], one_prompt))

    embedding = ours("embedding", one_prompt=False)
    unet, ids = unet_like(session.model).requires_grad_(False), embedding.token_ids(PLACEHOLDER)

    def text():
        return text_encoder_like(session.clip, embedding.vector[None], **checkpoint.TEXT).requires_grad_(False)

    steps = {"diffusers_script": theirs.ScriptStep(unet, text(), ids, latents, embedding.vector),
             "diffusers_one_vector": theirs.OneVectorStep(unet, text(), ids, latents, embedding.vector),
             "embedding": embedding,
             "embedding_one_prompt": ours("embedding", one_prompt=True)}
    return steps | {name: ours(name, one_prompt=True) for name in TERMS if name != "embedding"}


def check_agreement(steps: Mapping) -> None:
    """Raises AssertionError unless both sides have the same loss and gradient at the same latents, noise and
    timesteps."""
    ours = steps["embedding"]
    batch = ours.batch()
    latents, sampling = batch.latents["subject"], ours.trainer.session.noise.sampling
    order = [row.picture for row in batch.rows["subject"]]
    timesteps = sampling.timestep(latents.sigma).long()
    loss, gradient = ours.gradient(batch)
    for name in ("diffusers_script", "diffusers_one_vector"):
        rival = steps[name]
        rival.ids, kept = rival.ids[order], rival.ids
        other_loss, other_gradient = rival.gradient(latents.clean, latents.noise, timesteps)
        rival.ids = kept
        difference = float((gradient - other_gradient).norm() / gradient.norm())
        assert abs(loss / other_loss - 1) < AGREEMENT and difference < AGREEMENT, \
            f"{name}: loss {other_loss} against {loss}, gradients differ by {difference}"
        print(f"agreement with {name}: loss {loss:.6f} and {other_loss:.6f}, gradients differ by {difference:.1e}")


def report(steps: Mapping, circumstances: str, rounds: int) -> None:
    """Times, counts and prints."""
    from bench.measure import flops, median_ratio, peak_bytes, seconds_in_turn
    from personalize.nodes.training.loop import MEASURE_GRADIENTS_EVERY

    def line(text: str) -> None:
        print(f"{circumstances}: {text}", flush=True)

    seconds = seconds_in_turn(steps, rounds)
    counted = {name: flops(step) for name, step in steps.items()}
    peaks = {name: peak_bytes(step) for name, step in steps.items()}
    typical = {name: statistics.median(seconds[name]) for name in steps}
    for name, step in steps.items():
        line(f"{name}: {typical[name]:.3f} CPU s a step, {counted[name] / 1e9:.1f} GFLOP, at its peak "
             f"{peaks[name] / MIB:.0f} MiB of tensors beside {step.lasting_bytes() / MIB:.0f} MiB that last")
    for name, ours, against in RATIOS:
        line(f"{ours} {typical[ours]:.3f} s, {against} {typical[against]:.3f} s, bound by FLOPs "
             f"{counted[ours] / counted[against]:.2f}: ratio {name} {median_ratio(seconds, ours, against):.2f}")
    for name in ("core_exact", "core_estimator"):
        ours, plain = (peaks[n] + steps[n].lasting_bytes() for n in (name, "embedding_one_prompt"))
        line(f"{ours / MIB:.0f} and {plain / MIB:.0f} MiB: figure peak_memory_{name}_vs_embedding {ours / plain:.2f}")
        measured = seconds_in_turn({name: steps[name], "measured": steps[name].measured}, 3, warm_up=1)
        longer = median_ratio(measured, "measured", name)
        percent = 100 * (longer - 1) / MEASURE_GRADIENTS_EVERY
        line(f"a step that also measures gradient norms, one in {MEASURE_GRADIENTS_EVERY}, takes {longer:.2f} times as "
             f"long: figure gradient_norm_percent_{name} {percent:.1f}")


if __name__ == "__main__":
    main()
