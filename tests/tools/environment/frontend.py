"""Fetches another release of ComfyUI's page than the one that a ComfyUI asks for."""
from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from .packages import pip
from .report import SetupError, say

PACKAGE = "comfyui-frontend-package"
NEWEST = "1.58.1"
VARIABLE = "COMFYUI_FRONTEND"  # which page the tests' servers show, where it is not their ComfyUI's own


def fetch(version: str, folder: Path, python: Path) -> Path:
    """The page of this version as `main.py --front-end-root` takes it, downloaded with `python`'s pip into `folder` on
    first use. Raises SetupError."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise SetupError(f"{version} is not a version of {PACKAGE}, as {NEWEST} is.")
    target = folder / f"frontend-{version}"
    if not target.exists():
        say(f"downloading {PACKAGE} {version}")
        download = folder / f"download-frontend-{version}"
        shutil.rmtree(download, ignore_errors=True)
        pip(python, ["install", "--no-deps", "--no-compile", "--target", str(download), f"{PACKAGE}=={version}"],
            folder / f"pip-frontend-{version}.log")
        os.replace(download, target)
    return target / PACKAGE.replace("-", "_") / "static"
