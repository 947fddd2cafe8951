"""Finds a Chromium-like browser, or installs Debian's."""
from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

COMMANDS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge",
            "msedge")
USUAL_PLACES = {
    "Darwin": ("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
               "/Applications/Chromium.app/Contents/MacOS/Chromium",
               "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge"),
    "Windows": (r"C:\Program Files\Google\Chrome\Application\chrome.exe",
                r"C:\Program Files (x86)\Google\Chrome\Application\chrome.exe",
                r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe"),
}
INSTALL_COMMANDS = {
    "Darwin": "brew install --cask chromium",
    "Windows": "winget install Google.Chrome",
    "Linux": "sudo apt-get update && sudo apt-get install -y chromium fonts-noto-color-emoji",
}


def find() -> str | None:
    """Path of an installed Chromium, Chrome or Edge."""
    on_path = (shutil.which(command) for command in COMMANDS)
    usual = (place for place in USUAL_PLACES.get(platform.system(), ()) if Path(place).is_file())
    return next((path for path in on_path if path), next(usual, None))


def install_command() -> str:
    """What a person types to get a browser."""
    return INSTALL_COMMANDS.get(platform.system(), "install Chromium, Chrome or Edge")


def install() -> str | None:
    """Install Debian's Chromium when this user may; its path, or None where that is not possible."""
    if platform.system() != "Linux" or os.geteuid() != 0 or not shutil.which("apt-get"):
        return None
    quiet = {"stdout": subprocess.DEVNULL, "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}}
    packages = ["chromium", "fonts-noto-color-emoji"]
    for command in (["update", "-q"], ["install", "-y", "-q", "--no-install-recommends", *packages]):
        if subprocess.run(["apt-get", *command], check=False, **quiet).returncode != 0:
            return None
    return find()
