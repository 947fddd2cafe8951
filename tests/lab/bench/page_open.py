#!/usr/bin/env python3
"""What an open page costs a training: a run with the page open, its chart drawn as it goes, beside one without.

Both on the tiny SD1.5 in one real server, in turn. Counted are processor seconds of the server's process, which trains
and tells the page, and the wall time of the run; the browser's own processor time is no part of the run's, but its
cores are the run's too, where there are few.
"""
from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # before torch

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path[:1] = [str(Path(__file__).resolve().parents[2] / room) for room in (".", "lab", "tools")]

from environment import chromium
from support import inprocess
from support.browser import launch, open_page
from support.paths import PACK, TESTS
from support.server import ComfyServer
from support.training_page import TRAIN_NODE, training_prompt


def main() -> None:
    """Prints each pair and the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nodes2", action="store_true", help="the page with Nodes 2.0")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as base, launch(chromium.find()) as browser:
        inprocess.start(Path(base))
        inprocess.provide_checkpoint("sd15", Path(base))
        server = ComfyServer(Path(base), {"personalize": PACK, "tiny_models": TESTS / "tiny"})
        try:
            measure(server, browser, options)
        finally:
            server.stop()


def measure(server: ComfyServer, browser, options) -> None:
    """Runs in turn, the first pair uncounted."""
    sums = {True: [0.0, 0.0], False: [0.0, 0.0]}
    for number in range(options.rounds + 1):
        for is_open in (False, True) if number % 2 else (True, False):
            prompt = training_prompt(f"round-{number}-{is_open}", steps=options.steps, seed=number)
            with page_of(server, browser, prompt, options.nodes2) if is_open else contextlib.nullcontext():
                spent = run(server, prompt)
            print(f"round {number}, page {'open' if is_open else 'closed'}: {spent[0]:.2f} processor seconds, "
                  f"{spent[1]:.2f} s", flush=True)
            if number:
                sums[is_open] = [total + one for total, one in zip(sums[is_open], spent, strict=True)]
    for name, opened, closed in zip(("page_open", "page_open_wall"), sums[True], sums[False], strict=True):
        print(f"ratio {name} {opened / closed:.3f}")


@contextlib.contextmanager
def page_of(server: ComfyServer, browser, prompt: dict, nodes2: bool):
    """The page with the graph of the training; at the end its chart must have followed."""
    with open_page(browser, server, nodes2) as ui:
        ui.js("prompt => window.app.loadApiJson(prompt, 'training')", prompt)
        ui.load_workflow(ui.workflow())
        yield
        steps = prompt[TRAIN_NODE]["inputs"]["steps"]
        ui.page.locator(".pz-state", has_text=f"{steps} of {steps}").wait_for(timeout=10_000)


def run(server: ComfyServer, prompt: dict) -> tuple[float, float]:
    """(processor seconds of the server, seconds) of the training."""
    process = psutil.Process(server.pid)
    before, start = process.cpu_times(), time.monotonic()
    server.run(prompt, timeout=900)
    after = process.cpu_times()
    return after.user + after.system - before.user - before.system, time.monotonic() - start


if __name__ == "__main__":
    main()
