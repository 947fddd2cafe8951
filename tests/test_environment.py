"""Set-up speaks in sentences when something is missing. What it does when nothing is missing, every run of tests
shows."""
from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from environment import chromium, comfyui, packages, setup
from environment.report import SetupError
from support.paths import PACK, TESTS

CLOSED_PORT = "http://127.0.0.1:9/simple"


def run_tests(*options: str, **variables: str) -> subprocess.CompletedProcess:
    """`python3 tests/run.py` with these options."""
    environment = {**{k: v for k, v in os.environ.items() if k != "COMFYUI_PATH"}, **variables}
    return subprocess.run([sys.executable, str(TESTS / "run.py"), *options], env=environment, cwd=PACK, check=False,
                          capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("as_option", [True, False])
def test_a_folder_without_comfyui_is_named(tmp_path, as_option):
    ended = run_tests("--comfyui", str(tmp_path)) if as_option else run_tests(COMFYUI_PATH=str(tmp_path))
    assert ended.returncode == 2
    assert ended.stderr.strip().startswith(f"{tmp_path} holds no ComfyUI: ") and "Traceback" not in ended.stderr


def test_a_python_that_cannot_run_comfyui_is_named(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path)], check=True)
    bare = packages.venv_python(tmp_path)
    ended = run_tests("--comfyui", os.environ["COMFYUI_PATH"], "--python", str(bare), PYTHONPATH="")
    assert ended.returncode == 2
    assert "No module named 'torch'" in ended.stderr and ended.stderr.strip().endswith("name its Python with --python.")


def test_an_unknown_version_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(SetupError, match=r"0\.1\.1 is not among .*0\.30\.0, .*0\.16\.3\. Give your own with --comfyui"):
        comfyui.fetch("0.1.1", tmp_path, Path(sys.executable))


def test_too_little_room_is_told_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "NEEDED_GIGABYTES", 10**9)
    monkeypatch.setattr(setup, "FOLDER", tmp_path)
    with pytest.raises(SetupError, match=rf"GB are needed in {re.escape(str(tmp_path))}, but only \d+ GB are free"):
        setup.prepare()
    assert not any(tmp_path.iterdir())


def test_an_unreachable_index_is_told_in_a_sentence(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", CLOSED_PORT)
    monkeypatch.setenv("PIP_RETRIES", "1")
    python = packages.create_venv(sys.executable, tmp_path / "venv")
    with pytest.raises(SetupError, match="is this machine online") as offline:
        packages.pip(python, ["install", "pytest"], tmp_path / "pip.log")
    assert str(tmp_path / "pip.log") in str(offline.value)


def test_a_half_made_virtual_environment_is_made_again(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = packages.create_venv(sys.executable, tmp_path / "venv")
    subprocess.run([str(python), "-m", "pip", "--version"], check=True, capture_output=True)
    assert (tmp_path / "venv" / "complete").exists()


def test_a_missing_browser_comes_with_the_command_that_installs_one(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(chromium, "USUAL_PLACES", {})
    assert chromium.find() is None
    assert "chrom" in chromium.install_command().lower()
