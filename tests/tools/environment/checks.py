"""What reads the code without running it: ruff, a type check of nodes/ and a lint of js/, pinned in
requirements.txt."""
from __future__ import annotations

import subprocess

from .report import say
from .setup import TESTS, Environment

PACK = TESTS.parent


def commands(environment: Environment) -> dict[str, list[str]]:
    """Name of a check → the arguments of Python that run it in the pack's folder."""
    return {"lint": ["ruff", "check", "."],
            "types": ["ty", "check", "--python", str(environment.python), "--extra-search-path",
                      str(environment.comfyui), "nodes"],
            "JavaScript": ["deno", "lint", "--config", str(TESTS / "deno.json")]}


def run_checks(environment: Environment) -> int:
    """Run every check, each on the screen; the first exit status that is not 0, else 0."""
    results = []
    for name, arguments in commands(environment).items():
        say(f"check: {name}")
        done = subprocess.run([str(environment.python), "-m", *arguments], check=False, cwd=PACK,
                              env={**environment.variables(), "NO_COLOR": "1"})
        results.append(done.returncode)
    return next(filter(None, results), 0)
