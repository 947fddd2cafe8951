"""The training panel that the pack draws on Train nodes, as a test sees it."""
from __future__ import annotations

import re

from .browser import ComfyPage

ADD_NODE = """type => { const node = window.LiteGraph.createNode(type); node.pos = [80, 60];
    window.app.graph.add(node); window.app.canvas.setDirty(true, true); return String(node.id) }"""

ON_SCREEN = """() => { const box = document.querySelector('.pz-panel').getBoundingClientRect();
    return box.width > 0 && box.top > 0 && box.left > 0 && box.right < innerWidth && box.bottom < innerHeight }"""

# [column, highest row, lowest row] of every column of the chart in which a line's colour is found.
INK = """line => {
    const canvas = document.querySelector('.pz-panel .pz-plot canvas'), {width, height} = canvas;
    const hex = getComputedStyle(canvas).getPropertyValue(`--pz-line-${line}`).trim();
    const wanted = [1, 3, 5].map(start => parseInt(hex.slice(start, start + 2), 16));
    const copy = new OffscreenCanvas(width, height).getContext('2d', {willReadFrequently: true}), found = [];
    copy.drawImage(canvas, 0, 0);
    const {data} = copy.getImageData(0, 0, width, height);
    for (let x = 0; x < width; x++) {
        const rows = [];
        for (let y = 0; y < height; y++) {
            const pixel = 4 * (y * width + x);
            const isLine = wanted.every((value, i) => Math.abs(value - data[pixel + i]) < 30);
            if (data[pixel + 3] > 200 && isLine) rows.push(y);
        }
        if (rows.length) found.push([x, rows[0], rows.at(-1)]);
    }
    return found; }"""

TRAIN_NODE = "6"


def finished(ui) -> None:
    """Click Run and wait until it has succeeded."""
    run = ui.run()
    assert run.status == "success", run


def training_prompt(name: str, checkpoint: str = "sd15.safetensors", **changes) -> dict:
    """A small training in API format; node 6 trains, 7 saves. changes: inputs of Train."""
    train = {"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "subject": ["4", 0], "trainable": ["5", 0],
             "name": name, "preset": "custom", "steps": 3, "batch_size": 2, "micro_batch": 0, "optimizer": "AdamW",
             "weight_decay": 0.01, "schedule": "constant", "warmup_steps": 0, "clip_gradients": 0.0, "seed": 0,
             "precision": "auto", "gradient_checkpointing": False, "save_every": 0, "preview_every": 0,
             "preview_prompt": "a photo of {}", "resume": "start over", "use_step": 0, **changes}
    return {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
            "2": {"class_type": "PersonalizeConcept", "inputs": {
                "placeholder": "<dog>", "class_words": "dog", "initial_words": "", "vector_count": 1,
                "embedding": "none"}},
            "3": {"class_type": "EmptyImage", "inputs": {
                "width": 64, "height": 64, "batch_size": 2, "color": 0xA06030}},
            "4": {"class_type": "PersonalizeSubject", "inputs": {
                "concept": ["2", 0], "folder": "", "size": 64, "fit": "crop", "augmentation": "none", "variants": 1,
                "seed": 0, "images": ["3", 0], "picture_files": "", "captions": ""}},
            "5": {"class_type": "PersonalizeTrainEmbedding", "inputs": {
                "learning_rate": 0.005, "rescale_first_step": 0, "rescale_last_step": 0}},
            TRAIN_NODE: {"class_type": "PersonalizeTrain", "inputs": train},
            "7": {"class_type": "PersonalizeSaveConcept", "inputs": {"concept": [TRAIN_NODE, 0], "name": "learned"}}}


class TrainingPanel:
    """The panel of one Train node on the page."""

    def __init__(self, ui: ComfyPage, node_id: str):
        self.ui, self.node_id = ui, node_id
        self.root = ui.page.locator(".pz-panel")

    @classmethod
    def on_new_node(cls, ui: ComfyPage) -> TrainingPanel:
        """A graph with nothing but a Train node."""
        ui.js("() => window.app.graph.clear()")
        ui.settle(50)  # else Nodes 2.0 takes the new node of the same id for the old one
        panel = cls(ui, ui.js(ADD_NODE, "PersonalizeTrain"))
        panel.root.wait_for()
        ui.settle(100)
        ui.command("Comfy.Canvas.FitView")
        ui.page.wait_for_function(ON_SCREEN)
        return panel

    def tell(self, *messages: dict) -> None:
        """Hand the page messages as they come from the server, and wait until they are drawn."""
        self.ui.js("""messages => { const workflow = window.app.graph.id; for (const message of messages) {
            const detail = {workflow, ...message};
            window.comfyAPI.api.api.dispatchEvent(new CustomEvent('personalize.training', {detail})); } }""",
                   [{"node": self.node_id, "run": "my-subject-12345678", **message} for message in messages])
        self.ui.settle(250)

    def tell_steps(self, losses: list[float | None], **more) -> None:
        """A run of one step per loss."""
        self.tell({"kind": "start", "total": len(losses), "first_step": 0, "resumed_from": 0},
                  *(step(number, loss, len(losses), **more) for number, loss in enumerate(losses, 1)))

    def event(self, name: str, detail) -> None:
        """Hand the page one of ComfyUI's own messages."""
        self.ui.js("([name, detail]) => window.comfyAPI.api.api.dispatchEvent(new CustomEvent(name, {detail}))",
                   [name, detail])
        self.ui.settle(250)

    def text(self, part: str) -> str:
        """Text of "state", "figures", "error", "message", "empty" or "legend"; "" while it is not shown."""
        found = self.root.locator(f".pz-{part}")
        return found.inner_text().replace("\n", " ") if found.is_visible() else ""

    def ink(self, line: int) -> list[list[int]]:
        """[column, highest row, lowest row] wherever a line of this colour is drawn; 0 is the total."""
        return self.ui.js(INK, line)

    def show(self, view: str) -> None:
        """Choose "loss", "gradients" or "rate"."""
        self.root.locator(f"[data-view={view}]").click()
        self.ui.settle(150)

    def legend_at(self, part: float) -> str:
        """Text of the legend with the pointer at this part (0…1) of the chart's width."""
        box = self.root.locator(".u-over").bounding_box()
        self.ui.page.mouse.move(box["x"] + box["width"] * part, box["y"] + box["height"] / 2, steps=3)
        self.ui.settle(150)
        return self.text("legend")

    def plan(self, wanted: str = "") -> str:
        """What the panel says that Run will do, once it holds `wanted`. A pointer that comes to the panel asks."""
        self.ui.page.mouse.move(1, 1)
        box = self.root.bounding_box()
        self.ui.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 8)
        line = self.root.locator(".pz-plan")
        if wanted:
            line.filter(has_text=wanted).wait_for(timeout=10_000)
        return " ".join(line.inner_text().split())

    def press(self, command: str) -> None:
        """Press "stop", "save" or "sample"."""
        self.root.locator(f"[data-command={command}]").click()

    def wait_for_step(self, number: int, timeout: float = 60) -> None:
        """Wait until the panel shows that a run is at this step or beyond it."""
        self.ui.page.wait_for_function("""n => {
            const state = document.querySelector('.pz-panel .pz-state')?.textContent ?? '';
            return Number(state.match(/^Step (\\d+) of/)?.[1] ?? 0) >= n }""", arg=number, timeout=timeout * 1000)

    def first_and_last_step(self) -> list[int]:
        """First and last step of the chart, read from its description."""
        label = self.root.locator(".pz-chart").get_attribute("aria-label")
        return [int(number) for number in re.search(r"from step (\d+) to (\d+)", label).groups()]

    def previews(self) -> list[int]:
        """Steps of the previews, once their pictures are there."""
        self.ui.page.wait_for_function(
            "() => [...document.querySelectorAll('.pz-thumbnail img')].every(image => image.naturalWidth > 0)")
        return [int(button.get_attribute("data-step")) for button in self.root.locator(".pz-thumbnail").all()]

    def command_buttons(self) -> dict[str, bool]:
        """Command → whether its button can be pressed."""
        return {button.get_attribute("data-command"): button.is_enabled()
                for button in self.root.locator("[data-command]").all()}

    def widget(self, name: str):
        """A widget's value."""
        return next(node["widgets"][name] for node in self.ui.graph() if node["id"] == self.node_id)


def step(number: int, loss: float | None, total: int, **more) -> dict:
    """The message about one step."""
    return {"kind": "steps", "records": [record(number, loss, total, **more)]}


def record(number: int, loss: float | None, total: int, **more) -> dict:
    """What is kept of a step."""
    return {"step": number, "total": total, "loss": loss, "parts": {"diffusion": loss}, "norms": {},
            "lr": {"embedding": 5e-3}, "seconds_left": 1.0 * (total - number), **more}
