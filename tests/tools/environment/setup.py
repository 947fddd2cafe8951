"""Brings together a ComfyUI and a Python that runs it, fetched once into the ignored folder .testenv or the person's
own."""
from __future__ import annotations

import dataclasses
import hashlib
import os
import platform
import subprocess
import sys
from pathlib import Path

from . import comfyui
from .packages import check_space, create_venv, is_made, pip, venv_python
from .report import SetupError, say

TESTS = Path(__file__).resolve().parents[2]
MODULES = [str(TESTS / room) for room in (".", "lab", "tools")]  # what a script of the tests may import
FOLDER = TESTS.parent / ".testenv"
TOOLS = TESTS / "requirements.txt"
OWN = TESTS / "requirements-environment.txt"
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


@dataclasses.dataclass(frozen=True)
class Environment:
    """A ComfyUI and the Python that runs it. `packages`: folder of test tools that this Python has not itself."""

    comfyui: Path
    version: str
    python: Path
    packages: Path | None = None

    def variables(self) -> dict[str, str]:
        """The process environment for anything started here; its modules are compiled once, into .testenv."""
        paths = [str(self.packages)] if self.packages else []
        paths += [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
        python_path = {"PYTHONPATH": os.pathsep.join(paths)} if paths else {}
        return {**os.environ, **ONE_THREAD, **python_path, "COMFYUI_PATH": str(self.comfyui), "HF_HUB_OFFLINE": "1",
                "PYTHONUTF8": "1", "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(FOLDER / "compiled")}


def prepare(version: str | None = None, own_comfyui: str | None = None, own_python: str | None = None) -> Environment:
    """Set up on first use, reuse after that.

    own_comfyui: the person's ComfyUI, run by `own_python` or the Python found beside it; nothing is installed into
    that. Otherwise ComfyUI `version` is fetched, and run in a virtual environment with the newest version's
    requirements. Raises SetupError.
    """
    FOLDER.mkdir(exist_ok=True)
    if own_comfyui:
        return _own(Path(own_comfyui).expanduser().resolve(), own_python)
    if not is_made(FOLDER / "venv"):
        check_space(FOLDER)
    python = create_venv(own_python or sys.executable, FOLDER / "venv")
    newest = comfyui.fetch(comfyui.NEWEST, FOLDER, python)
    _install(python, [newest / "requirements.txt", OWN, TOOLS])
    version = version or comfyui.NEWEST
    return Environment(comfyui.fetch(version, FOLDER, python), version, python)


def _install(python: Path, requirements: list[Path], target: Path | None = None) -> None:
    stamp = (target or python.parents[1]) / "installed.txt"
    wanted = hashlib.sha256(b"".join(file.read_bytes() for file in requirements)).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    if target is None:
        say("installing torch and ComfyUI's requirements (on Linux about 3 GB to download, 7 GB on disk)")
    else:
        say("installing the test tools beside your ComfyUI's Python")
    arguments = ["install", "--no-compile"]  # what is imported gets compiled then, the rest never
    arguments += ["--target", str(target), "--upgrade"] if target else []
    for file in requirements:
        arguments += ["--requirement", str(file)]
    pip(python, arguments, FOLDER / "pip-install.log")
    stamp.write_text(wanted)


def _own(folder: Path, own_python: str | None) -> Environment:
    version = comfyui.version_of(folder)
    python = Path(own_python) if own_python else _python_beside(folder)
    try:
        answer = subprocess.run([str(python), "-c", "import sys, torch, aiohttp; print(*sys.version_info[:2])"],
                                check=False, capture_output=True, text=True)
    except OSError as error:
        raise SetupError(
            f"{python} cannot be started ({error.strerror}): name your ComfyUI's Python with --python."
        ) from error
    if answer.returncode != 0:
        raise SetupError(f"{python} cannot run the ComfyUI in {folder} ({answer.stderr.strip().splitlines()[-1]}): "
                         "name its Python with --python.")
    tag = hashlib.sha256(str(python).encode()).hexdigest()[:8]
    packages = FOLDER / f"tools-{tag}-{answer.stdout.strip().replace(' ', '.')}"
    _install(python, [TOOLS], target=packages)
    return Environment(folder, version, python, packages)


def _python_beside(folder: Path) -> Path:
    """The Python that belongs to a ComfyUI folder: its virtual environment, the Windows portable one, or this one."""
    candidates = [venv_python(folder / name) for name in (".venv", "venv")]
    if platform.system() == "Windows":
        candidates.append(folder.parent / "python_embeded" / "python.exe")
    return next((path for path in candidates if path.exists()), Path(sys.executable))
