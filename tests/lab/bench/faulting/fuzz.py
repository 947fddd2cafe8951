#!/usr/bin/env python3
"""Odd files for every loader: how many end in a usable result or in one sentence, within memory that goes with their
size."""
from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch

import argparse
import logging
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[3])

SHOWN = 5  # failures of each loader that are told in full


def run(count: int, seed: int) -> tuple[int, int]:
    """Tries `count` files in all and prints a figure for each loader; returns (survived, total).

    ComfyUI and the pack must be importable. The same numbers give the same files.
    """
    import folder_paths

    from support.fuzzed_loaders import RUN, loaders

    survived = total = 0
    with tempfile.TemporaryDirectory() as temporary:
        run_folder = Path(folder_paths.get_output_directory()) / "personalize" / RUN
        every = loaders(Path(temporary), run_folder)
        for i, (name, loader) in enumerate(every.items()):
            share = count * (i + 1) // len(every) - count * i // len(every)
            folder = Path(temporary) / f"files of {name}"
            folder.mkdir()
            passed, tried = _try(loader, folder, share, seed)
            print(f"figure fuzzed_{name} {passed} of {tried}", flush=True)
            survived, total = survived + passed, total + tried
    return survived, total


def _try(loader, folder: Path, count: int, seed: int) -> tuple[int, int]:
    """How many of `count` files passed, and how many were tried."""
    import hypothesis

    from support.fuzzing import check, files

    failures: list[str] = []
    tried = 0

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=count, deadline=None, database=None, phases=[hypothesis.Phase.generate],
                         suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(files(loader))
    def each(file: tuple[str, bytes]) -> None:
        nonlocal tried
        tried += 1
        failures.extend(_failure(lambda: check(loader, folder, *file)))

    each()
    for failure in failures[:SHOWN]:
        print(failure, file=sys.stderr, flush=True)
    return tried - len(failures), tried


def _failure(act: Callable[[], None]) -> list[str]:
    """What went wrong, if anything did: also what a library raises beside Exception."""
    try:
        act()
    except KeyboardInterrupt:
        raise
    except BaseException:
        return [traceback.format_exc(limit=-6)]
    return []


def main() -> int:
    """ComfyUI in this process, then all files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="files in all (default 10000)")
    parser.add_argument("--seed", type=int, default=1)
    own = parser.parse_args()
    from support import inprocess, pack

    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as base:
        inprocess.start(Path(base))
        pack.make_importable()
        survived, total = run(own.count, own.seed)
    print(f"figure fuzzed_files {survived} of {total}")
    return survived != total


if __name__ == "__main__":
    sys.exit(main())
