#!/usr/bin/env python3
"""What an open page costs a training: a run with the page open, its chart drawn as it goes, beside one with ComfyUI's
page on an empty canvas, and one without a page.

All on the tiny SD1.5 in one real server, in turn. Counted are processor seconds of the server's process, which trains
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


CHART, EMPTY, NONE = "with the chart", "empty", "none"


def measure(server: ComfyServer, browser, options) -> None:
    """Runs in turn, the first of each kind uncounted."""
    sums = {page: [0.0, 0.0] for page in (CHART, EMPTY, NONE)}
    for number in range(options.rounds + 1):
        for page in sums if number % 2 else reversed(sums):
            prompt = training_prompt(f"round-{number}-{page}", steps=options.steps, seed=number)
            with page_of(server, browser, prompt, options.nodes2, page) as ui:
                spent = run(server, prompt, ui if page == CHART else None)
            print(f"round {number}, page: {page}: {spent[0]:.2f} processor seconds, {spent[1]:.2f} s", flush=True)
            if number:
                sums[page] = [total + one for total, one in zip(sums[page], spent, strict=True)]
    for name, beside in (("page_open", EMPTY), ("page_open_beside_none", NONE)):
        for kind, with_chart, without in zip(("", "_wall"), sums[CHART], sums[beside], strict=True):
            print(f"ratio {name}{kind} {with_chart / without:.3f}")


@contextlib.contextmanager
def page_of(server: ComfyServer, browser, prompt: dict, nodes2: bool, page: str):
    """The page with the graph of the training, an empty one, or none; at the end a chart must have followed."""
    if page == NONE:
        yield None
        return
    with open_page(browser, server, nodes2) as ui:
        if page == EMPTY:
            ui.js("() => window.app.graph.clear()")
            yield ui
            return
        ui.js("prompt => window.app.loadApiJson(prompt, 'training')", prompt)
        ui.load_workflow(ui.workflow())
        yield ui
        steps = prompt[TRAIN_NODE]["inputs"]["steps"]
        ui.page.locator(".pz-state", has_text=f"{steps} of {steps}").wait_for(timeout=10_000)


def run(server: ComfyServer, prompt: dict, ui) -> tuple[float, float]:
    """(processor seconds of the server, seconds) of the training, begun by Run in the page or without one."""
    process = psutil.Process(server.pid)
    before, start = process.cpu_times(), time.monotonic()
    prompt_id = ui.press_run()[0] if ui else server.post("/prompt", {"prompt": prompt})[1]["prompt_id"]
    while not (ended := server.get(f"/history/{prompt_id}")):
        time.sleep(0.2)
    after = process.cpu_times()
    if ended[prompt_id]["status"]["status_str"] != "success":
        raise RuntimeError(f"The training failed: {ended[prompt_id]['status']}")
    return after.user + after.system - before.user - before.system, time.monotonic() - start


if __name__ == "__main__":
    main()
