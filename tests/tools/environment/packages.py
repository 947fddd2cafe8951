"""A virtual environment and what pip puts into it."""
from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from .report import SetupError, say

NEEDED_GIGABYTES = 12
OFFLINE_MARKS = ("NewConnectionError", "Temporary failure in name resolution", "ProxyError", "ConnectTimeoutError",
                 "Failed to establish a new connection", "Connection refused", "getaddrinfo failed", "ReadTimeoutError")


def venv_python(folder: Path) -> Path:
    """The interpreter of the virtual environment in `folder`."""
    return folder / ("Scripts/python.exe" if platform.system() == "Windows" else "bin/python")


def is_made(folder: Path) -> bool:
    """True when `create_venv` has ended in `folder`."""
    return (folder / "complete").exists()


def check_space(folder: Path) -> None:
    """Raises SetupError unless `folder` has room for everything that a virtual environment of its own needs."""
    free = shutil.disk_usage(folder).free / 1e9
    if free < NEEDED_GIGABYTES:
        raise SetupError(f"About {NEEDED_GIGABYTES} GB are needed in {folder}, but only {free:.0f} GB are free.")


def create_venv(python: str, folder: Path) -> Path:
    """Make the virtual environment unless it is there; its interpreter."""
    if is_made(folder):
        return venv_python(folder)
    say(f"creating a virtual environment in {folder}")
    made = subprocess.run([python, "-m", "venv", "--clear", str(folder)], check=False, capture_output=True, text=True)
    if made.returncode != 0:
        shutil.rmtree(folder, ignore_errors=True)
        raise SetupError(
            f"{python} -m venv failed. On Debian and Ubuntu `sudo apt-get install python3-venv` provides it. "
            f"It said: {(made.stdout + made.stderr).strip()[-300:]}"
        )
    (folder / "complete").touch()
    return venv_python(folder)


def pip(python: Path, arguments: list[str], log: Path) -> None:
    """Run pip, with everything it says in `log` and the large downloads on the screen. Raises SetupError."""
    command = [str(python), "-m", "pip", *arguments, "--disable-pip-version-check", "--no-input", "--progress-bar",
               "off"]
    with open(log, "w", encoding="utf-8") as record:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                   encoding="utf-8", errors="replace", env={**os.environ, "PYTHONUTF8": "1"})
        for line in process.stdout:
            record.write(line)
            _show(line)
    if process.wait() != 0:
        raise SetupError(_explain(log.read_text(encoding="utf-8"), log))


def _show(line: str) -> None:
    download = re.search(r"(?:Downloading|Using cached) (?:\S+/)?(\S+) \(([\d.]+ [GM]B)\)", line)
    if download and ("GB" in download[2] or float(download[2].split()[0]) >= 20):
        say(f"    {download[1].split('-')[0]}, {download[2]}")
    elif line.startswith("Installing collected packages:"):
        say(f"    installing {line.count(',') + 1} packages")


def _explain(output: str, log: Path) -> str:
    if "No space left on device" in output:
        return f"The disk became full while packages were installed; about {NEEDED_GIGABYTES} GB are needed."
    if any(mark in output for mark in OFFLINE_MARKS):
        return f"Packages could not be downloaded: is this machine online? What pip said is in {log}."
    if "No module named pip" in output:
        return (
            "This Python has no pip. On Debian and Ubuntu `sudo apt-get install python3-venv python3-pip` provides it."
        )
    missing = re.search(r"No matching distribution found for (\S+)", output)
    if missing:
        return (
            f"There is no {missing[1]} for Python {platform.python_version()} on this {platform.system()} machine, or "
            f"the machine is offline. Try another Python, or your own ComfyUI with --comfyui. What pip said is in "
            f"{log}."
        )
    errors = [line for line in output.splitlines() if line.startswith("ERROR")]
    return f"pip failed: {errors[-1] if errors else 'no reason given'} All it said is in {log}."
