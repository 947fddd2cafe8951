"""The Subject node in the page: a person's pictures dropped on it, and what they see."""
from __future__ import annotations

import base64
import copy
import re
from io import BytesIO

from PIL import Image

PROMPT = {
    "1": {"class_type": "PersonalizeConcept", "inputs": {
        "placeholder": "<my-dog>", "class_words": "dog", "initial_words": "", "vector_count": 1, "embedding": "none"}},
    "2": {"class_type": "PersonalizeSubject", "inputs": {
        "concept": ["1", 0], "folder": "", "size": 64, "fit": "crop", "augmentation": "none", "variants": 1, "seed": 0,
        "picture_files": "", "captions": ""}},
    "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 1]}},
}
DROP = """([selector, files]) => {
    const transfer = new DataTransfer();
    for (const [name, type, data] of files)
        transfer.items.add(new File([Uint8Array.from(atob(data), c => c.charCodeAt(0))], name, {type}));
    const target = document.querySelector(selector), box = target.getBoundingClientRect();
    for (const kind of ['dragenter', 'dragover', 'drop'])
        target.dispatchEvent(new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true,
            clientX: box.left + box.width / 2, clientY: box.top + box.height / 2}));
}"""


class Tray:
    """What a person sees and does on the Subject node."""

    def __init__(self, ui):
        self.ui = ui
        self.root = ui.page.locator(".pz-tray")

    def names(self) -> list[str]:
        return self.root.locator(".pz-tray-item").evaluate_all("items => items.map(item => item.dataset.name)")

    def wait_for(self, names: list[str]) -> None:
        """The thumbnails of these pictures, each really drawn, and what was found of them said: they lie still."""
        self.ui.page.wait_for_function(
            """names => { const items = [...document.querySelectorAll('.pz-tray-item')];
                return items.map(item => item.dataset.name).join() === names.join()
                    && !document.querySelector('.pz-tray-findings[aria-busy=true]')
                    && items.every(item => item.querySelector('img').naturalWidth > 0) }""", arg=names, timeout=15_000)

    def drop(self, files: dict[str, bytes], selector: str = ".pz-tray") -> None:
        entries = [[name, "text/plain" if name.endswith(".txt") else "image/png" if name.endswith(".png") else "",
                    base64.b64encode(data).decode()] for name, data in files.items()]
        self.ui.js(DROP, [selector, entries])

    def error(self) -> str:
        error = self.root.locator(".pz-error")
        return error.inner_text() if error.is_visible() else ""

    def wait_for_error(self, start: str) -> str:
        self.root.locator(".pz-error", has_text=re.compile(f"^{re.escape(start)}")).wait_for(timeout=10_000)
        return self.error()

    def widgets(self) -> dict:
        return next(node["widgets"] for node in self.ui.graph() if node["type"] == "PersonalizeSubject")


def png(colour: str, size: tuple[int, int] = (64, 64)) -> bytes:
    data = BytesIO()
    Image.new("RGB", size, colour).save(data, "PNG")
    return data.getvalue()


DOGS = {"red.png": png("red"), "green.png": png("lime", (90, 64)), "blue.png": png("blue", (64, 120))}


def opened(ui, **inputs) -> Tray:
    prompt = copy.deepcopy(PROMPT)
    prompt["2"]["inputs"].update(inputs)
    ui.js("prompt => window.app.loadApiJson(prompt, 'subject')", prompt)
    tray = Tray(ui)
    fit_into_view(ui, tray)
    return tray


def fit_into_view(ui, tray: Tray) -> None:
    """A busy page lays the nodes out after it has fitted them into view."""
    for _ in range(10):
        ui.command("Comfy.Canvas.FitView")
        ui.settle(500)
        if tray.root.is_visible():
            break
