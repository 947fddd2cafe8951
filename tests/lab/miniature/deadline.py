"""When to stop: after so many minutes, or when asked to (Ctrl-C, termination), at the end of the step."""
from __future__ import annotations

import signal
import time


class Deadline:
    """``over`` turns True once the time is up, or a signal came after ``listen``; training loops then save and
    return."""

    def __init__(self, minutes: float):
        self.began = time.monotonic()
        self._until = self.began + 60 * minutes
        self._asked = False

    def listen(self) -> Deadline:
        """Take Ctrl-C and termination as the end of the time, instead of the end of the process."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        return self

    def _stop(self, number: int, frame: object) -> None:
        self._asked = True

    @property
    def over(self) -> bool:
        return self._asked or time.monotonic() > self._until

    def log(self, line: str) -> None:
        """Print a line with the seconds since the start."""
        print(f"[{time.monotonic() - self.began:7.0f} s] {line}", flush=True)
