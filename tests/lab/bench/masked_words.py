#!/usr/bin/env python3
"""What the masked words loss adds to a training step, beside the bound that counted operations set, and what training a
contextualizer takes at CLIP-L's real size.

CPU seconds of one thread, in turn with the rival's. U: the denoiser, T: the text encoder with one prompt, ψ: the
contextualizer, forward and backward each. A step without the loss is U + T, one with it U + 2T + ψ. See README.md."""
from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "KINETO_LOG_LEVEL": "5", "HF_HUB_OFFLINE": "1"}  # before torch

import argparse
import itertools
import statistics
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

sys.path[:1] = [str(Path(__file__).resolve().parents[2] / room) for room in (".", "lab", "tools")]

from support import inprocess

MIB, GIGA = 2**20, 1e9
AIM = 1.10  # of the ratio over its bound
WORD = "<my-dog>"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resolution", type=int, nargs="*", default=[128, 512],
                        help="pixels of a picture's side (default 128 512)")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each kind, in turn (default 5)")
    parser.add_argument("--batch", type=int, default=32, help="prompts of a contextualizer's step (default 32)")
    parser.add_argument("--steps", type=int, default=2, help="steps of it that are measured; 0: none (default 2)")
    return parser.parse_args()


def main() -> None:
    """Prints one line per ratio and figure."""
    options = arguments()
    with inprocess.started():
        from bench import checkpoint

        model, clip = checkpoint.load(dtype=torch.float32)
        if options.steps:
            contextualizer(clip, options.batch, options.steps)
        for resolution in options.resolution:
            overhead(model, clip, resolution, options.rounds)


def rich(count: int) -> tuple[str, ...]:
    """Templates as the nodes put them together."""
    from personalize.nodes.text.rich_prompts import PATTERNS, rich_prompts

    return rich_prompts("animate", PATTERNS, count).templates


def untrained(clip):
    """A contextualizer of the default size that knows all words of the rich prompts; its weights cost as trained ones
    do."""
    from personalize.nodes.papers.context.contextualizer import ContextNetwork, Contextualizer, Sizes
    from personalize.nodes.papers.context.masking import hideable
    from personalize.nodes.text.encoders import text_encoders
    from personalize.nodes.text.tokens import PromptTokenizer
    from personalize.nodes.text.vectors import WordVectors
    from personalize.nodes.training.description import encoder_fingerprint

    tokenizer, known = PromptTokenizer(clip, {WORD: 1}), range(10**6)
    words = sorted({tokens.layout.pieces[place].id for template in rich(2000)
                    for tokens in [tokenizer.fill(template, WORD)] for place in hideable(tokens, known)})
    sizes = Sizes(text_encoders(clip)[0].width, len(words))
    mask = WordVectors({e.key: torch.zeros(1, e.width) for e in text_encoders(clip)})
    return Contextualizer("bench", encoder_fingerprint(clip), sizes, ContextNetwork(sizes).state_dict(),
                          torch.tensor(words), mask, {})


def overhead(model, clip, resolution: int, rounds: int) -> None:
    """A step of Textual Inversion with and without the loss."""
    from bench.measure import flops, median_ratio, seconds_in_turn
    from bench.ours import training_step
    from personalize.nodes.papers.context.terms import MaskedLanguageLoss
    from personalize.nodes.training.diffusion import DiffusionLoss
    from personalize.nodes.training.session import training_session

    side, drawn = resolution // 8, torch.Generator().manual_seed(0)
    latents, network = torch.randn(1, 4, side, side, generator=drawn), untrained(clip)
    terms = {"plain": (DiffusionLoss(),),
             "masked_words": (DiffusionLoss(), MaskedLanguageLoss(rich(200), network))}
    with training_session(model, clip) as session, ExitStack() as opened:
        steps = {name: opened.enter_context(training_step(session, latents, each, True))
                 for name, each in terms.items()}
        text, told = of_text_and_network(session.clip, network)
        counted = {name: flops(step) for name, step in steps.items()}
        bound = (counted["plain"] + text + told) / counted["plain"]
        seconds = seconds_in_turn(steps, rounds, warm_up=1)
    where = f"{resolution} px, batch 1, fp32, {torch.get_num_threads()} thread, load {os.getloadavg()[0]:.1f}"
    typical = {name: statistics.median(each) for name, each in seconds.items()}
    for name in steps:
        print(f"{where}: {name}: {typical[name]:.3f} CPU s a step, {counted[name] / GIGA:.1f} GFLOP")
    print(f"{where}: U {(counted['plain'] - text) / GIGA:.1f}, T {text / GIGA:.1f}, ψ {told / GIGA:.2f} GFLOP")
    print(f"{where}: bound (U + 2T + ψ) / (U + T) {bound:.3f}, counted "
          f"{counted['masked_words'] / counted['plain']:.3f}, at most {AIM * bound:.3f}: "
          f"ratio masked_words_{resolution} {median_ratio(seconds, 'masked_words', 'plain'):.3f}", flush=True)


def of_text_and_network(clip, contextualizer) -> tuple[int, int]:
    """T and ψ: operations of one prompt through the text encoder, and of its outputs through the network, with the
    gradient of what comes in."""
    from bench.measure import flops
    from personalize.nodes.text.encode import encode
    from personalize.nodes.text.encoders import text_encoders
    from personalize.nodes.text.tokens import PromptTokenizer

    encoder, = text_encoders(clip)
    tokens = PromptTokenizer(clip, {WORD: 1}).fill("a photo of a {}", WORD)
    vectors = {WORD: {encoder.key: torch.zeros(1, encoder.width, requires_grad=True)}}
    outputs = torch.randn(1, tokens.layout.length, encoder.width, requires_grad=True)
    looked_at = torch.zeros(1, tokens.layout.length, dtype=torch.bool)
    return (flops(lambda: encode(clip, [tokens], [vectors]).cond.sum().backward()),
            flops(lambda: contextualizer.network(outputs, looked_at).sum().backward()))


def contextualizer(clip, batch: int, steps: int) -> None:
    """What Train Contextualizer takes with its defaults, from a few of its steps."""
    from bench.measure import recorded_bytes
    from personalize.nodes.papers.context.learning import Learning, train_contextualizer

    prompts = [template.replace("{}", "dog") for template in rich(2000)]
    train = partial(train_contextualizer, clip, prompts, name="bench", check_every=10**6)
    started, ends = time.process_time(), []
    train(how=Learning(steps=steps + 2, batch=batch), each_step=lambda _: ends.append(time.process_time()))
    took = statistics.median(later - earlier for earlier, later in itertools.pairwise(ends[:-1]))
    checked = ends[-1] - ends[-2] - took
    with recorded_bytes() as recorded:
        train(how=Learning(steps=1, batch=batch), each_step=lambda _: None)
    usual = Learning()
    seconds = usual.steps * took + usual.steps / 100 * checked + ends[0] - started - took
    where = f"CLIP-L, batch {batch}, fp32, {torch.get_num_threads()} thread, load {os.getloadavg()[0]:.1f}"
    print(f"{where}: {took:.2f} CPU s a step, a check {checked:.1f} s, at its peak "
          f"{recorded.peak / MIB:.0f} MiB of tensors", flush=True)
    print(f"{where}: extrapolated from {steps} steps to {usual.steps}: figure contextualizer_minutes "
          f"{seconds / 60:.0f} minutes", flush=True)


if __name__ == "__main__":
    main()
