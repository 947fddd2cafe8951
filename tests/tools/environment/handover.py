"""Runs a module of the tests with the Python that runs ComfyUI."""
from __future__ import annotations

import argparse
import os
import subprocess
import sys

from .report import SetupError, say
from .setup import MODULES, Environment, prepare


def set_up_and_run(options: argparse.Namespace, module: str) -> int:
    """Provide the ComfyUI and Python that `options` name (comfyui, python), or our own, and hand over to the module.

    Returns its exit status, 2 with one sentence if the set-up failed.
    """
    try:
        environment = prepare(own_comfyui=options.comfyui, own_python=options.python)
    except SetupError as error:
        print(f"\n{error}", file=sys.stderr)
        return 2
    say(f"using ComfyUI {environment.version} in {environment.comfyui}")
    return hand_over(environment, module)


def hand_over(environment: Environment, module: str) -> int:
    """`python -m module` with this process's arguments, and the tests' modules to be imported; returns its exit status.

    On Ctrl+C the module, which gets it too, decides when to end.
    """
    variables = environment.variables()
    paths = [*MODULES, variables.get("PYTHONPATH", "")]
    variables["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    running = subprocess.Popen([str(environment.python), "-m", module, *sys.argv[1:]], env=variables)
    while True:
        try:
            return running.wait()
        except KeyboardInterrupt:
            continue
