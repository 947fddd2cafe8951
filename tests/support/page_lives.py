"""The lives of nodes in the page: what is drawn on each of them, and what a person does to them."""
from __future__ import annotations

import time

from .browser import ComfyPage
from .page_scripts import READY
from .training_page import training_prompt

# [node's id, part, content] of every part that is really drawn: on its own node, in view, and no other in its place.
PARTS = """() => {
    const {canvas} = window.app, {ds} = canvas, area = canvas.canvas.getBoundingClientRect(), found = [];
    canvas.setDirty(true, true);
    const content = {
        thumbnails: root => [...root.querySelectorAll('.pz-tray-item')]
            .filter(item => item.querySelector('img').naturalWidth > 0).map(item => item.dataset.name).join(),
        training: root => [root.querySelector('.pz-state').textContent, root.querySelectorAll('.pz-thumbnail').length,
            root.querySelector('.pz-plot canvas')?.width > 0].join(),
        result: root => root.value};
    for (const node of canvas.graph.nodes) for (const widget of node.widgets ?? []) {
        const root = widget.element, part = widget.name.split(' ')[0];
        if (!(part in content)) continue;
        const box = root.getBoundingClientRect();
        const left = area.x + (node.pos[0] + ds.offset[0]) * ds.scale - 2;
        const right = left + node.size[0] * ds.scale + 4;
        const inNode = window.LiteGraph.vueNodesMode
            ? [...document.querySelectorAll(`[data-node-id="${node.id}"] .pz-${
                {thumbnails: 'tray', training: 'panel', result: 'text'}[part]}`)]
            : [root];
        const ofPart = node.widgets.filter(other => other.name.split(' ')[0] === part);
        const isDrawn = root.isConnected && box.width > 20 && box.height > 10 && box.left >= left && box.right <= right
            && inNode.includes(root) && inNode.length === ofPart.length;
        found.push([node.subgraph ? 'outer' : node.id, part, isDrawn ? content[part](root) : 'not drawn']);
    }
    return found.sort((a, b) => a.join().localeCompare(b.join())); }"""
SELECT = """ids => { const canvas = window.app.canvas; canvas.deselectAll();
    for (const node of canvas.graph.nodes) if (!ids || ids.includes(String(node.id))) canvas.select(node);
    document.getElementById('graph-canvas').focus(); }"""
TITLE = """id => { const {canvas} = window.app, {ds} = canvas, node = canvas.graph.getNodeById(id);
    const {x, y} = canvas.canvas.getBoundingClientRect(), [left, top] = node.pos;
    return [x + (left + 60 + ds.offset[0]) * ds.scale, y + (top - 15 + ds.offset[1]) * ds.scale] }"""
SUBGRAPH = "() => String(window.app.canvas.graph.nodes.find(node => node.subgraph)?.id)"
OPEN = """() => { const {canvas} = window.app, node = canvas.graph.nodes.find(node => node.subgraph);
    canvas.openSubgraph(node.subgraph, node) }"""

OPEN_WORKFLOW = "() => window.app.extensionManager.workflow.activeWorkflow.path"


def graph_of_all_parts(name: str, **changes) -> dict:
    """In API format: Subject 4 with pictures of the folder `dogs`, Train 6, and Save Concept 7 that shows a text."""
    prompt = training_prompt(name, **{"steps": 4, "save_every": 2, "preview_every": 2, **changes})
    del prompt["3"], prompt["4"]["inputs"]["images"]
    prompt["4"]["inputs"]["folder"] = "dogs"
    prompt["7"]["inputs"]["name"] = name
    return prompt


class Lives:
    """One page with the graph of all parts, and what happens to its nodes."""

    def __init__(self, ui: ComfyPage, name: str):
        self.ui, self.keyboard, self.name = ui, ui.page.keyboard, name
        ui.js("prompt => window.app.loadApiJson(prompt, 'lives')", graph_of_all_parts(name))
        assert ui.load_workflow(ui.workflow()).problems == {}
        run = ui.run(timeout=300)
        assert run.status == "success", run
        self.state = ui.page.locator(".pz-state", has_text="Step 4 of 4").inner_text()
        self.result = "\n".join(run.outputs["7"]["text"])
        self.saved = ui.workflow()

    def all_of(self, subject: str, train: str, save: str) -> list[list[str]]:
        """What is drawn when nothing was lost."""
        return [[subject, "thumbnails", "a.png,b.png"], [train, "training", f"{self.state},3,true"],
                [save, "result", self.result]]

    def expect(self, *nodes: tuple[str, str, str]) -> None:
        """Wait until these (Subject, Train, Save Concept) show all of theirs; "outer" is the subgraph's node."""
        self.expect_rows([row for three in nodes for row in self.all_of(*three)])

    def expect_rows(self, rows: list[list[str]]) -> None:
        """Wait until exactly these parts are drawn, as [node, part, content]."""
        expected = sorted(rows)
        deadline, found = time.monotonic() + 30, None
        while found != expected and time.monotonic() < deadline:
            self.js("() => window.app.canvas.deselectAll()")
            self.ui.command("Comfy.Canvas.FitView")
            self.ui.settle(400)
            found = sorted([str(node), part, content] for node, part, content in self.js(PARTS))
        assert found == expected, found

    def js(self, expression: str, argument=None):
        return self.ui.js(expression, argument)

    def load(self) -> None:
        """The workflow as it was saved after the run."""
        self.ui.load_workflow(self.saved)

    def select(self, *ids: str) -> None:
        """These nodes, or all, with the keyboard on the canvas."""
        self.js(SELECT, list(ids) or None)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.keyboard.press(key)
            self.ui.settle(250)

    def drag_with_alt(self, node_id: str) -> None:
        """Alt-drag of a node's title: a copy of the node."""
        x, y = self.js(TITLE, node_id)
        mouse = self.ui.page.mouse
        mouse.move(400, 870)  # the page knows its canvas once the pointer was on it
        mouse.move(x, y, steps=2)
        self.keyboard.down("Alt")
        mouse.down()
        mouse.move(x + 10, y + 250, steps=5)
        mouse.up()
        self.keyboard.up("Alt")
        self.ui.settle(200)

    def convert(self) -> str:
        """Subject, Train and Save Concept become a subgraph; the id of its node."""
        self.select("4", "6", "7")
        self.command("Comfy.Graph.ConvertToSubgraph")
        return self.js(SUBGRAPH)

    def unpack(self) -> None:
        """Take the subgraph apart."""
        self.select(self.js(SUBGRAPH))
        self.command("Comfy.Graph.UnpackSubgraph")

    def open_subgraph(self) -> None:
        self.js(OPEN)
        self.ui.settle(300)

    def command(self, command: str) -> None:
        self.ui.command(command)
        self.ui.settle(300)

    def to_workflow(self, command: str) -> None:
        """Give a command that opens another workflow, and wait until it is open."""
        before = self.js(OPEN_WORKFLOW)
        self.ui.command(command)
        self.ui.page.wait_for_function(f"before => ({OPEN_WORKFLOW})() !== before", arg=before)
        self.ui.settle(300)

    def back_to(self, path: str) -> None:
        """To the open workflow of this path, through the others on the way."""
        while self.js(OPEN_WORKFLOW) != path:
            self.to_workflow("Workspace.PreviousOpenedWorkflow")

    def nodes(self, *types: str) -> list[str]:
        """Ids of the nodes of these types in the graph that is shown."""
        return self.js("types => types.flatMap(type => window.app.canvas.graph.nodes.filter(n => n.type === type)"
                       ".map(n => String(n.id)))", list(types))

    def switch_renderer(self) -> None:
        """Classic nodes become Nodes 2.0 and the other way round."""
        self.js("""() => { const {setting} = window.app.extensionManager;
            return setting.set('Comfy.VueNodes.Enabled', !setting.get('Comfy.VueNodes.Enabled')) }""")
        self.ui.settle(500)

    def reload_page(self) -> None:
        """F5: the page comes back with the workflow that was open."""
        self.ui.page.reload(wait_until="domcontentloaded")
        self.ui.page.wait_for_function(READY, timeout=60_000)
        self.ui.settle(300)
