"""ComfyUI's real page in a real headless browser."""
from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

from .page_scripts import GRAPH, IMAGES_SHOWN, NODE_BOX, READY, WARN_WITH_CALLERS, WATCH
from .server import PAGE_SETTINGS, ComfyServer

BROWSER_ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    # "no internet" at once, and the same on every machine
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1 , EXCLUDE localhost"]

# Console messages that are not ours, matched against "<text> <address>". Anything else fails a test.
NOT_OURS = tuple(re.compile(pattern, re.DOTALL) for pattern in (
    r"404.*/user\.css", r"404.*/api/userdata/(user\.css|comfy\.templates\.json)",
    r"404.*/api/userdata\?dir=(workflows|subgraphs)",  # a new user has none of these
    r"404.*/api/userdata/workflows%2F\.index\.json",  # bookmarks of workflows, of which there are none yet
    r"Invalid layout total size",  # of the page's own panels, in 1.58
    r"The trigger event was undefined when addNode was called",  # its search, opened by a key or a command
    r"input\.link is deprecated(?!.*/extensions/)",  # in 1.58, where the page reads it itself
    r"ComfyApp graph accessed before initialization",
    r"The legacy queue/history menu is deprecated",
    r"\[MaskEditor\] ComfyApp\.open_maskeditor is deprecated",  # the frontend about itself
    r"404.*/extensions/[^ ]+/docs/[^ ]+/[a-zA-Z-]+\.md",  # docs/<node>.md is tried next
    r"https?://(?!127\.|localhost)\S+.*violates the (following|document's) Content Security Policy",
    r"https?://(?!127\.|localhost)\S+.*Refused to connect because it violates",
    r"ERR_NAME_NOT_RESOLVED.*https?://(?!127\.|localhost)",  # the page asks the internet, there is none
))


@dataclasses.dataclass
class LoadedWorkflow:
    """What the page made of a workflow file; `problems` is empty when all of it was understood."""

    nodes: list[dict]
    problems: dict[str, object]


@dataclasses.dataclass
class PageRun:
    """How a run started from the page ended. status: success, error, interrupted or rejected (validation)."""

    status: str
    prompt_id: str | None
    outputs: dict[str, dict]
    error: dict
    overlay: str


class ComfyPage:
    """One open page. `page` is Playwright's object for whatever has no method here."""

    def __init__(self, page, server: ComfyServer):
        self.page, self.server = page, server
        self._messages: list[str] = []
        page.add_init_script(WARN_WITH_CALLERS)
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self._messages.append(f"uncaught: {error}"))

    def _on_console(self, message) -> None:
        # warnings count: an exception in an extension's onExecuted is only a warning
        if message.type in ("error", "warning"):
            self._messages.append(f"{message.text} {message.location.get('url', '')}")

    def open(self, nodes2: bool = False) -> None:
        """Load (or reload) the page as a user who has seen the tutorial; nodes2: with Nodes 2.0."""
        settings = {**PAGE_SETTINGS, "Comfy.VueNodes.Enabled": nodes2, "Comfy.RightSidePanel.IsOpen": False}
        self.server.post("/api/settings", settings)
        self.page.goto(self.server.url, wait_until="domcontentloaded")
        self.page.wait_for_function(READY, timeout=60_000)
        self.js(WATCH)

    def js(self, expression: str, argument=None):
        """Evaluate JavaScript in the page."""
        return self.page.evaluate(expression, argument)

    def command(self, command: str) -> None:
        """Run one of the page's commands, as "Comfy.Canvas.FitView"."""
        self.js("id => window.app.extensionManager.command.execute(id).then(() => null)", command)

    def settle(self, milliseconds: int = 300) -> None:
        """Wait, then for two redraws."""
        self.page.wait_for_timeout(milliseconds)
        self.js("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(null))))")

    def unexpected_messages(self) -> list[str]:
        """Console errors and warnings, and uncaught exceptions, that are not the frontend's own."""
        return [text for text in self._messages if not any(pattern.search(text) for pattern in NOT_OURS)]

    def overlay(self) -> str:
        """The error notice at the top right, "" when there is none."""
        notice = self.page.locator("[data-testid=error-overlay]")
        return re.sub(r"\s*\n\s*", " | ", notice.first.inner_text()) if notice.count() else ""

    def graph(self) -> list[dict]:
        """All nodes on the canvas: id, type, widgets {name: value}, missing, bad values, images."""
        return self.js(GRAPH)

    def prompt(self) -> dict:
        """The graph in API format, as Run would send it."""
        return self.js("async () => (await window.app.graphToPrompt()).output")

    def workflow(self) -> dict:
        """The graph in UI format, as Save would write it."""
        return self.js("async () => JSON.parse(JSON.stringify((await window.app.graphToPrompt()).workflow))")

    def set_widget(self, node_id: str | int, name: str, value) -> None:
        """Change a widget as typing into it does."""
        self.js("""([id, name, value]) => {
            const widget = window.app.graph.getNodeById(id).widgets.find(w => w.name === name);
            widget.value = value; widget.callback?.(value); window.app.canvas.setDirty(true, true); }""",
                [node_id, name, value])

    def load_workflow(self, workflow: Path | dict) -> LoadedWorkflow:
        """Open a workflow in UI format, and compare what is on the canvas with what the file says."""
        document = workflow if isinstance(workflow, dict) else json.loads(workflow.read_text(encoding="utf-8"))
        self.js("async document => { await window.app.loadGraphData(document, true, true, 'test') }", document)
        self.page.wait_for_function("() => !window.app.extensionManager.spinner", timeout=20_000)
        self.command("Comfy.Canvas.FitView")
        self.settle(500)  # the notice about missing nodes and files comes a moment later
        nodes = self.graph()
        return LoadedWorkflow(nodes, self._problems(nodes, document))

    def _problems(self, nodes: list[dict], document: dict) -> dict[str, object]:
        on_canvas = {node["id"]: node for node in nodes}
        changed, added = [], []
        for saved in document.get("nodes", []):
            values, node = saved.get("widgets_values"), on_canvas.get(str(saved["id"]))
            if node and not node["missing"] and isinstance(values, list) and values != node["serialized"]:
                kept = values == node["serialized"][:len(values)]
                (added if kept else changed).append((saved["type"], values, node["serialized"]))
        found = {
            "missing nodes": sorted({node["type"] for node in nodes if node["missing"]}),
            "inputs without widget": [(node["type"], node["lacking"]) for node in nodes if node["lacking"]],
            "bad values": [(node["type"], node["bad"]) for node in nodes if node["bad"]],
            "changed values": changed, "values of later widgets": added, "notice": self.overlay()}
        return {name: value for name, value in found.items() if value}

    def press_run(self, timeout: float = 60) -> tuple[str | None, dict]:
        """Click Run; the prompt's id (None when refused) and the server's answer."""
        def is_queued(answer) -> bool:
            return answer.url.partition("?")[0].endswith("/api/prompt") and answer.request.method == "POST"

        with self.page.expect_response(is_queued, timeout=timeout * 1000) as answer:
            self.page.click("[data-testid=queue-button]")
        body = answer.value.json()
        return body.get("prompt_id"), body

    def wait_for_end(self, prompt_id: str, timeout: float = 120) -> PageRun:
        """Wait until the page has been told how this prompt ended, and shows its pictures."""
        self.page.wait_for_function("id => window.testWatch.ended[id]", arg=prompt_id, timeout=timeout * 1000)
        event, detail = self.js("id => window.testWatch.ended[id]", prompt_id)
        deadline, history = time.monotonic() + 5, {}
        while prompt_id not in history and time.monotonic() < deadline:  # written just after the message
            history = self.server.get(f"/history/{prompt_id}")
        outputs = history[prompt_id]["outputs"]
        if event == "execution_success":
            with_images = [node_id for node_id, output in outputs.items()
                           if output.get("images") and ":" not in node_id]  # not within a subgraph
            self.page.wait_for_function(IMAGES_SHOWN, arg=with_images, timeout=60_000)
        else:
            self.page.wait_for_selector("[data-testid=error-overlay]", timeout=5_000)
        self.settle()
        return PageRun(event.removeprefix("execution_"), prompt_id, outputs, detail, self.overlay())

    def run(self, timeout: float = 120) -> PageRun:
        """Click Run and wait for the end."""
        prompt_id, answer = self.press_run()
        if prompt_id:
            return self.wait_for_end(prompt_id, timeout)
        self.page.wait_for_selector("[data-testid=error-overlay]", timeout=5_000)
        return PageRun("rejected", None, {}, answer, self.overlay())

    def templates(self, pack: str) -> list[str]:
        """Open the template browser at a pack; the names it offers."""
        self.command("Comfy.BrowseTemplates")
        self.page.wait_for_selector("[data-testid=template-workflows-content]", timeout=60_000)
        self.page.locator("[role=dialog]").get_by_text(pack, exact=True).first.click()
        cards = self.page.locator("[data-testid^='template-workflow-']")
        cards.first.wait_for(timeout=10_000)
        self.settle(600)
        names = cards.evaluate_all("cards => cards.map(card => card.getAttribute('data-testid'))")
        return [name.removeprefix("template-workflow-") for name in names]

    def pick_template(self, name: str) -> list[dict]:
        """Open a card of the open template browser; the nodes that it brings.

        The click is one event on the card. Between the press and the release of a mouse a busy page may draw its cards
        anew or move them, and then nothing is clicked."""
        loads = self.js("() => window.testWatch.loads")
        self.page.locator(f"[data-testid='template-workflow-{name}']").dispatch_event("click")
        self.page.wait_for_function("n => window.testWatch.loads > n", arg=loads, polling=100, timeout=60_000)
        card = self.page.locator(f"[data-testid='template-workflow-{name}']")
        card.wait_for(state="detached")  # the browser, which gives back the focus as it goes
        self.settle(600)
        return self.graph()

    def open_node_search(self) -> None:
        """Open the node search by the page's own command, and wait until it takes what is typed."""
        self.page.mouse.move(700, 400)  # the page knows its canvas once the pointer was on it
        self.command("Workspace.SearchBox.Toggle")
        self.page.wait_for_function("() => document.activeElement?.closest('[role=dialog]')")

    def node_help(self, node_id: str | int) -> str:
        """Select a node, press its info button; the text of the help page."""
        self.js("""id => { const canvas = window.app.canvas; canvas.deselectAll();
            canvas.selectNode(window.app.graph.getNodeById(id)); canvas.setDirty(true, true) }""", node_id)
        self.page.wait_for_selector("[data-testid=selection-toolbox]", timeout=10_000)
        self.page.click("[data-testid=info-button]")
        panel = self.page.locator("[data-testid=properties-panel]")
        panel.wait_for(timeout=10_000)
        self.settle(600)
        return panel.inner_text()

    def screenshot(self, path: Path, node_id: str | int | None = None) -> Path:
        """The whole page with the graph fitted into it, or only one node's box."""
        self.command("Comfy.Canvas.FitView")
        self.settle(500)
        clip = {"clip": self.js(NODE_BOX, node_id)} if node_id is not None else {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=str(path), **clip)
        return path


@contextlib.contextmanager
def launch(executable: str) -> Iterator[object]:
    """A running headless browser (Playwright's Browser)."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, headless=True, args=BROWSER_ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def open_page(browser, server: ComfyServer, nodes2: bool = False) -> Iterator[ComfyPage]:
    """A new browser profile showing the server's page."""
    context = browser.new_context(viewport={"width": 1600, "height": 900}, locale="en-US")
    try:
        ui = ComfyPage(context.new_page(), server)
        ui.open(nodes2)
        yield ui
    finally:
        context.close()
