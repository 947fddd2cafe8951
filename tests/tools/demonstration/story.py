"""Tells on the screen what happens while a prompt runs."""
from __future__ import annotations

import time
from pathlib import Path

from environment.report import say

SECONDS_BETWEEN_LINES = 5


class Story:
    """Turns ComfyUI's messages about one prompt, and those of Train, into lines."""

    def __init__(self, prompt: dict, definitions: dict, output: Path):
        self._titles = {node_id: definitions[node["class_type"]]["display_name"] for node_id, node in prompt.items()}
        self._output = output
        self._last_line = 0.0

    def tell(self, event: str, data: dict) -> None:
        """One message."""
        if event == "executing" and data["node"]:
            say(f"  {self._titles[data['node']]}")
        elif event == "personalize.training":
            getattr(self, f"_tell_{data['kind']}", lambda data: None)(data)

    def _tell_step(self, data: dict) -> None:
        ends = data["step"] in (1, data["total"])
        if ends or time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            parts = ", ".join(f"{term} {value:.2g}" for term, value in data["parts"].items() if value is not None)
            say(f"    step {data['step']} of {data['total']}: loss {data['loss']:.4f} ({parts}), "
                f"{data['seconds_left']:.0f} s left")

    def _tell_preview(self, data: dict) -> None:
        image = data["image"]
        say(f"    preview of step {data['step']}: {self._output / image['subfolder'] / image['filename']}")

    def _tell_saved(self, data: dict) -> None:
        say(f"    saved at step {data['step']}: {', '.join(data['embeddings'])}")


def summary(found: list[tuple[str, Path]], base: Path) -> str:
    """What is where, one line each, below `base`."""
    width = max(len(name) for name, _ in found)
    return "\n".join(f"  {name:{width}}  {path.relative_to(base)}" for name, path in found)
