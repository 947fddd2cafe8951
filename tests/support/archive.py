"""The archive that the registry would hand out: what git tracks, without what .comfyignore names."""
from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

from .paths import PACK


def archived_files() -> list[str]:
    """Paths in the archive, relative to the pack; git itself reads the patterns of .comfyignore."""
    return sorted(_listed() - _listed("--ignored", "--cached", "--exclude-from=.comfyignore"))


def _listed(*options: str) -> set[str]:
    listing = subprocess.run(["git", "ls-files", "-z", *options], cwd=PACK, capture_output=True, text=True, check=True)
    return {path for path in listing.stdout.split("\0") if path and (PACK / path).exists()}


def install(folder: Path) -> Path:
    """Pack the archive, unpack it into `folder` as an installer does; `folder`."""
    archive = folder.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        for path in archived_files():
            out.write(PACK / path, path)
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(folder)
    archive.unlink()
    return folder
