#!/usr/bin/env python3
"""Runs the pack's tests in a real ComfyUI, after setting up whatever that needs in the ignored folder .testenv."""
from __future__ import annotations

import sys

if sys.version_info < (3, 10):
    sys.exit("Python 3.10 or newer is needed; this is Python %d.%d." % sys.version_info[:2])

import argparse
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Mapping, TextIO

from environment import chromium, comfyui
from environment.report import SetupError, say
from environment.setup import Environment, prepare

TESTS = Path(__file__).resolve().parent
IN_CI = os.environ.get("CI", "").lower() in ("1", "true")
IN_PROCESS = ["-m", "not server and not browser"]
IN_PAGE = ["-m", "server or browser"]
ON_OLDER = ["-m", "not server and not browser and not newer"]
BIT_FOR_BIT = ("test_branch_samplers.py", "test_branch_guidance.py")  # the same on every processor
BY_HAND = ["-m", "by_hand", *(f"--ignore={TESTS / name}" for name in BIT_FOR_BIT)]
NO_WIDE_VECTORS = {"ATEN_CPU_CAPABILITY": "default"}  # what torch computes with where a processor has neither AVX2 nor AVX-512
APART = ["-m", "not server and not browser and not newer and not slow", f"--ignore={TESTS / 'miniature'}"]


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """Our own options, and what is left for pytest."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     epilog="Anything else goes to pytest: paths, -k WORDS, -x, ...")
    parser.add_argument("--comfyui", metavar="PATH", default=os.environ.get("COMFYUI_PATH"),
                        help="test with this ComfyUI (also: COMFYUI_PATH); nothing is installed into it")
    parser.add_argument("--python", metavar="PATH", help="the Python that runs it, where it is not found beside it")
    parser.add_argument("--comfyui-version", metavar="VERSION", choices=comfyui.RELEASES,
                        help=f"fetch this ComfyUI (default {comfyui.NEWEST}); below the newest only the in-process tests run, "
                             f"one of {', '.join(comfyui.RELEASES)}")
    parser.add_argument("--packs", metavar="FOLDER",
                        help="also test beside other packs, whose checkouts this folder holds; they are only read")
    own, for_pytest = parser.parse_known_args()
    if own.packs:
        for_pytest.append(f"--packs={own.packs}")
    if own.comfyui_version and own.comfyui:
        parser.error("--comfyui-version fetches a ComfyUI: leave out --comfyui and COMFYUI_PATH")
    return own, for_pytest


def provide_browser() -> None:
    """Say which browser will be used, or what to do about none. Raises SetupError in CI."""
    browser = chromium.find()
    if browser is None:
        say("no Chromium, Chrome or Edge found; trying to install Chromium")
        browser = chromium.install()
    if browser is None and IN_CI:
        raise SetupError(f"No browser was found and none could be installed: {chromium.install_command()}")
    say(f"browser: {browser}" if browser else f"no browser, its tests will not run: {chromium.install_command()}")


def start_pytest(environment: Environment, options: list[str], output: TextIO | None = None,
                 variables: Mapping[str, str] = {}) -> subprocess.Popen:
    """Start pytest there, on the screen or into a file, with more variables in its process environment."""
    say(f"testing with ComfyUI {environment.version} in {environment.comfyui}")
    paths = [] if any(Path(option.partition("::")[0]).exists() for option in options) else [str(TESTS)]
    command = [str(environment.python), "-m", "pytest", "-c", str(TESTS / "pytest.ini"), *options, *paths]
    return subprocess.Popen(command, env={**environment.variables(), **variables}, stdout=output, stderr=output)


def run_in_ci(newest: Environment, oldest: Environment) -> int:
    """Every test on the newest ComfyUI, comparisons of mathematics also as on a processor without wide vectors, and on the
    oldest ComfyUI the tests that could tell it from the newest, on two cores at once."""
    quiet = ["-p", "no:cacheprovider"]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as report, ThreadPoolExecutor() as second_core:
        beside = second_core.submit(lambda: [
            start_pytest(newest, [*quiet, "--durations=15", *IN_PAGE], report).wait(),
            start_pytest(oldest, [*quiet, *APART], report).wait()])
        results = [start_pytest(newest, ["--durations=15", *IN_PROCESS]).wait(),
                   start_pytest(newest, [*quiet, *BY_HAND], variables=NO_WIDE_VECTORS).wait(), *beside.result()]
        say("what was said meanwhile by the tests of the page, and of everything on the oldest ComfyUI:")
        report.seek(0)
        shutil.copyfileobj(report, sys.stdout)
    return next(filter(None, results), 0)


def main() -> int:
    """Set up, test, and in CI test the oldest ComfyUI too."""
    own, for_pytest = arguments()
    try:
        environment = prepare(own.comfyui_version, own.comfyui, own.python)
        older = own.comfyui_version not in (None, comfyui.NEWEST)
        if not older:
            provide_browser()
        if IN_CI and len(sys.argv) == 1:
            return run_in_ci(environment, prepare(comfyui.OLDEST))
        return start_pytest(environment, for_pytest + (ON_OLDER if older else [])).wait()
    except SetupError as error:
        print(f"\n{error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
