"""How set-up talks: progress lines, and one sentence when it cannot go on."""
from __future__ import annotations

import time

_started = time.monotonic()


class SetupError(Exception):
    """Set-up cannot go on; the text tells the person what is missing and what to do."""


def say(text: str) -> None:
    """One line of progress with the seconds since the start."""
    print(f"[{time.monotonic() - _started:4.0f} s] {text}", flush=True)
