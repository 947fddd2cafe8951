"""Runs a module of the tests with the Python that runs ComfyUI."""
from __future__ import annotations

import os
import subprocess
import sys

from .setup import TESTS, Environment


def hand_over(environment: Environment, module: str) -> int:
    """`python -m module` with this process's arguments and tests/ on the module path; returns its exit status.

    On Ctrl+C the module, which gets it too, decides when to end.
    """
    variables = environment.variables()
    paths = [str(TESTS), variables.get("PYTHONPATH", "")]
    variables["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    running = subprocess.Popen([str(environment.python), "-m", module, *sys.argv[1:]], env=variables)
    while True:
        try:
            return running.wait()
        except KeyboardInterrupt:
            continue
