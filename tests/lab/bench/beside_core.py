"""A LoRA's training step beside that of ComfyUI's own Train LoRA node."""
from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from personalize.nodes.training.loop import gradient_norm
from personalize.nodes.training.parts.weights import AdapterPart
from personalize.nodes.training.session import training_session

from .core_side import CoreTraining
from .measure import flops, median_ratio, peak_bytes
from .ours import CAPTIONS, TERMS, TrainingStep, training_step

RANK = 8
PROMPT = CAPTIONS[0].replace("{}", "dog")
AGREEMENT = 1e-3
MIB = 2**20
RIVALS = (("core_train_lora", False), ("core_bypass", True))


def report(model, clip, latents: Tensor, rounds: int, line: Callable[[str], None]) -> None:
    """Prints what a step on latents (batch, 4, h, w) costs here and there: every layer, rank 8, AdamW, one prompt."""
    rivals = {name: CoreTraining(model, clip, latents, PROMPT, RANK, bypass) for name, bypass in RIVALS}
    part = AdapterPart(rank=RANK, alpha=1.0, attention_only=False)
    with (training_session(model, clip) as session,
          training_step(session, latents, TERMS["embedding"], True, PROMPT, part) as ours):
        _check_agreement(ours, rivals["core_train_lora"], latents, line)
        seconds: dict[str, list[float]] = {name: [] for name in ("ours", *rivals)}
        for turn in range(rounds):
            for name in list(seconds)[::1 if turn % 2 else -1]:
                seconds[name].append(rivals[name].step_seconds() if name in rivals else _seconds(ours))
        counted = {name: flops(partial(rival, 2)) - flops(partial(rival, 1)) for name, rival in rivals.items()}
        peaks = {name: rival.step_peak_bytes() for name, rival in rivals.items()}
        session.load()
        counted["ours"], peaks["ours"] = flops(ours), peak_bytes(ours)
        norm = _norm_seconds(ours)
    typical = {name: statistics.median(each) for name, each in seconds.items()}
    for name in seconds:
        line(f"LoRA, {name}: {typical[name]:.3f} CPU s a step, {counted[name] / 1e9:.1f} GFLOP, at its peak "
             f"{peaks[name] / MIB:.0f} MiB of tensors")
    for name in rivals:
        line(f"ours {typical['ours']:.3f} s, {name} {typical[name]:.3f} s, bound by FLOPs "
             f"{counted['ours'] / counted[name]:.2f}: ratio lora_vs_{name} {median_ratio(seconds, 'ours', name):.2f}")
        line(f"ratio lora_peak_vs_{name} {peaks['ours'] / peaks[name]:.2f}")
    percent = 100 * norm / typical["ours"]
    line(f"the length of all gradients in every step: figure lora_gradient_norm_percent {percent:.2f}")


def _seconds(ours: TrainingStep, steps: int = 2) -> float:
    ours.trainer.session.load()  # the other side's model has pushed it out
    ours()
    return _seconds_of(ours, steps)


def _seconds_of(step: Callable[[], object], times: int = 1) -> float:
    started = time.process_time()
    for _ in range(times):
        step()
    return (time.process_time() - started) / times


def _norm_seconds(ours: TrainingStep) -> float:
    parameters = [p for group in ours.part.groups for p in group.params]
    for p in parameters:
        p.grad = torch.ones_like(p)
    return statistics.median(_seconds_of(lambda: gradient_norm(parameters)) for _ in range(9))


def _check_agreement(ours: TrainingStep, rival: CoreTraining, latents: Tensor, line: Callable[[str], None]) -> None:
    """Raises AssertionError unless both sides find the same loss at the same noisy latents, before anything is learned.

    Theirs is the error of the predicted clean latents, ours that of the predicted noise: it is divided by σ².
    """
    loss, noisy, sigma = rival.first_step()
    assert len(latents) == 1, "which picture is in which row of the other side is not known"
    session = ours.trainer.session
    session.load()
    batch = ours.batch()
    noise = (noisy - latents) / sigma
    rows = replace(batch.latents["subject"], clean=latents, noise=noise, noisy=noisy, sigma=sigma)
    losses = ours.trainer.objective.backward(replace(batch, latents={"subject": rows}))
    found = sum(losses.values()) * float(sigma) ** 2
    ours.trainer.optimizer.zero_grad(set_to_none=True)
    assert abs(found / loss - 1) < AGREEMENT, f"loss {found} against {loss}"
    line(f"agreement with core's Train LoRA at its first step: loss {found:.6f} and {loss:.6f}")
