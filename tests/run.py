#!/usr/bin/env python3
"""Runs the pack's tests in a real ComfyUI, after setting up whatever that needs in the ignored folder .testenv."""
from __future__ import annotations

import sys

if sys.version_info < (3, 10):
    sys.exit("Python 3.10 or newer is needed; this is Python %d.%d." % sys.version_info[:2])

import argparse
import os
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parent / "tools"))

from environment import chromium, comfyui, frontend
from environment.checks import run_checks
from environment.jobs import Job, run_pytest, run_queue
from environment.report import SetupError, say
from environment.setup import FOLDER, Environment, prepare

TESTS = Path(__file__).resolve().parent
IN_CI = os.environ.get("CI", "").lower() in ("1", "true")
IN_PROCESS = ["-m", "not server and not browser"]
IN_PAGE = ["-m", "server or browser"]
ON_OLDER = ["-m", "not server and not browser and not newer"]
ON_OLDEST = ["-m", "not server and not browser and not newer and not slow and not by_hand"]
BY_HAND_ON_OLDEST = ["-m", "by_hand and not newer and not slow"]
SMOKE = ["-m", "smoke", "-q", "-p", "no:cacheprovider"]
LABORATORY = ("lab",)
# Of files, text and what a run keeps: nothing that ComfyUI's version could change and no other test would tell.
OWN_CODE = tuple(f"test_{name}.py" for name in (
    "class_pictures", "context_encoders", "demo", "dreambooth", "environment", "export", "fingerprint",
    "foreign_files", "fuzzed_files", "interfaces", "jobs", "locales", "manage_steps", "next_run", "pages",
    "picture_bounds", "picture_check", "picture_folders", "picture_formats",
    "picture_writing", "placeholders", "prior", "prompts", "run_key", "run_records", "saved_steps", "saving",
    "training_causes", "training_learns", "training_safety", "validation", "vico_input", "vico_trained", "zoom"))
NO_WIDE_VECTORS = {
    "ATEN_CPU_CAPABILITY": "default"
}  # what torch computes with where a processor has neither AVX2 nor AVX-512


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """Our own options, and what is left for pytest."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     epilog="Anything else goes to pytest: paths, -k WORDS, -x, ...")
    parser.add_argument("--comfyui", metavar="PATH", default=os.environ.get("COMFYUI_PATH"),
                        help="test with this ComfyUI (also: COMFYUI_PATH); nothing is installed into it")
    parser.add_argument("--python", metavar="PATH", help="the Python that runs it, where it is not found beside it")
    parser.add_argument(
        "--comfyui-version",
        metavar="VERSION",
        choices=comfyui.RELEASES,
        help=f"fetch this ComfyUI (default {comfyui.NEWEST}); below the newest only the in-process tests run, "
        f"one of {', '.join(comfyui.RELEASES)}",
    )
    parser.add_argument("--frontend", metavar="VERSION",
                        help=f"show ComfyUI's page of this version, as {frontend.NEWEST}, in the tests of the page")
    parser.add_argument("--packs", metavar="FOLDER",
                        help="also test beside other packs, whose checkouts this folder holds; they are only read")
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--checks", action="store_true", help="only what reads the code: lint, types, JavaScript")
    extent.add_argument("--smoke", action="store_true",
                        help="the checks and one test or two of every room, in a minute")
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


def ci_jobs(newest: Environment, oldest: Environment) -> list[Job]:
    """Every test on the newest ComfyUI, and on the oldest those that could tell it from the newest; of these each tenth
    comparison of mathematics, as on a processor without wide vectors. The page waits much of its time, which the others
    take."""
    quiet = ["-p", "no:cacheprovider", "--durations=15"]
    files = [str(path) for path in sorted(TESTS.glob("test_*.py"))]
    jobs = [Job("in the page", newest, [*quiet, *IN_PAGE, *ignoring(*LABORATORY)])]
    for name, environment, options, variables in (
            ("in process, one half", newest, [*IN_PROCESS, *files[::2]], {}),
            ("in process, the other half", newest, [*IN_PROCESS, *files[1::2]], {}),
            ("on the oldest ComfyUI", oldest, [*ON_OLDEST, *ignoring(*LABORATORY, *OWN_CODE)], {}),
            ("comparisons on the oldest ComfyUI, without wide vectors", oldest,
             [*BY_HAND_ON_OLDEST, "--every=10", *ignoring(*LABORATORY)], NO_WIDE_VECTORS),
            ("the laboratory", newest, [*IN_PROCESS, *(str(TESTS / room) for room in LABORATORY)], {})):
        jobs.append(Job(name, environment, [*quiet, *options], variables, yields=True))
    return jobs


def page_of(environment: Environment, version: str | None) -> dict[str, str]:
    """Variables that make the tests' servers show the page of this version; none for their ComfyUI's own."""
    return {frontend.VARIABLE: str(frontend.fetch(version, FOLDER, environment.python))} if version else {}


def with_smoke_tests() -> list[str]:
    """Files that hold tests of the smoke run; to collect all others would take most of its minute."""
    return [str(path) for path in sorted(TESTS.glob("test_*.py")) if "@pytest.mark.smoke" in path.read_text("utf-8")]


def ignoring(*names: str) -> list[str]:
    """Pytest's options that leave out files and folders of the tests."""
    return [f"--ignore={TESTS / name}" for name in names]


def main() -> int:
    """Set up, check the code, test, and in CI test the oldest ComfyUI too."""
    own, for_pytest = arguments()
    try:
        environment = prepare(own.comfyui_version, own.comfyui, own.python)
        found = run_checks(environment) if own.checks or own.smoke or len(sys.argv) == 1 else 0
        if own.checks:
            return found
        if own.smoke:
            return run_pytest(Job("smoke", environment, [*SMOKE, *for_pytest, *with_smoke_tests()])) or found
        older = own.comfyui_version not in (None, comfyui.NEWEST)
        if not older:
            provide_browser()
        if IN_CI and len(sys.argv) == 1:
            return run_queue(ci_jobs(environment, prepare(comfyui.OLDEST)), workers=3) or found
        options = for_pytest + (ON_OLDER if older else [])
        return run_pytest(Job("tests", environment, options, page_of(environment, own.frontend))) or found
    except SetupError as error:
        print(f"\n{error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
