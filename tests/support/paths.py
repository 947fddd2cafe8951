"""Where the tests find things."""
from __future__ import annotations

import os
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PACK = TESTS.parent
CACHE = PACK / ".testenv"


def comfyui() -> Path:
    """The ComfyUI under test: `COMFYUI_PATH`, which `tests/run.py` sets."""
    path = os.environ.get("COMFYUI_PATH")
    if not path or not (Path(path) / "main.py").is_file():
        raise RuntimeError(
            f"COMFYUI_PATH is {path!r}, which holds no ComfyUI: start the tests with `python3 tests/run.py`."
        )
    return Path(path).resolve()
