"""The templates as a person first sees them, and a first training from them, every click counted."""
from __future__ import annotations

import json

import pytest

from support.browser import open_page
from support.subject_page import Tray, png
from support.templates import ALL_SHIPPED, QUICK, provide_files

READABLE = 0.75  # of the full size
SCREENS = {"small": {"width": 1366, "height": 768}, "large": {"width": 1920, "height": 1080}}
OPEN = "([document, name]) => window.app.loadGraphData(document, true, true, name, {openSource: 'template'})"
SEEN = """() => { const {canvas, graph} = window.app, note = graph.nodes.find(node => node.type === 'MarkdownNote');
    const {width, height} = canvas.canvas.getBoundingClientRect(), [x, y, w, h] = note.boundingRect;
    const {scale, offset} = canvas.ds, left = (x + offset[0]) * scale, top = (y + offset[1]) * scale;
    return {scale, isWhole: left > 60 && top > 80 && left + w * scale < width && top + h * scale < height,
            isLeft: left < width / 4, marks: graph.extra.opens_at ?? null}; }"""
HIDDEN_WIRES = """() => { const {canvas, graph} = window.app, edge = 20, found = [];
    const [left, top] = [0, 1].map(axis => Math.min(...graph.nodes.map(node => node.pos[axis])));
    Object.assign(canvas.ds, {scale: 0.1, offset: [400 - left, 800 - top]}); // wires out of sight are not drawn
    canvas.draw(true, true);
    const pen = document.createElement('canvas').getContext('2d');
    pen.lineWidth = 2;
    const wires = [...graph.links.values(), ...graph.reroutes.values()];
    for (const {path} of wires) for (const node of graph.nodes) {
        const [x, y, width, height] = node.boundingRect;
        const isOn = (right, down) => pen.isPointInStroke(path, x + right, y + down);
        let hits = 0;
        for (let at = edge; at < width - edge; at += 2) hits += isOn(at, edge) + isOn(at, height - edge);
        for (let at = edge; at < height - edge; at += 2) hits += isOn(edge, at) + isOn(width - edge, at);
        if (hits) found.push(node.title);
    }
    return [wires.length, found]; }"""
OVERLAPPING = """() => { const boxes = window.app.graph.nodes.map(node => [node.title, ...node.boundingRect]);
    return boxes.flatMap(([title, x, y, width, height], number) => boxes.slice(0, number)
        .filter(([, left, top, w, h]) => x < left + w && left < x + width && y < top + h && top < y + height)
        .map(([other]) => `${title} on ${other}`)); }"""
THREE_CLICKS = "Learn my subject in three clicks"
QUICK_INSIDE = """values => { const outer = window.app.graph.nodes.find(node => node.subgraph);
    for (const [type, settings] of Object.entries(values)) for (const node of [
        ...outer.subgraph.nodes, ...window.app.graph.nodes].filter(node => node.type === type))
        for (const [name, value] of Object.entries(settings))
            node.widgets.find(widget => widget.name === name).value = value; }"""
OUTER_TRAY = ".pz-tray[data-part^='thumbnails ']"  # on the subgraph's node, not on that within
DROPPED = """([tray, names]) => { const items = [...document.querySelectorAll(`${tray} .pz-tray-item`)];
    return items.map(item => item.dataset.name).join() === names.join(); }"""
ROW = """([type, name]) => { const {canvas, graph} = window.app, {scale, offset} = canvas.ds;
    const node = graph.nodes.find(node => type ? node.type === type : node.subgraph);
    const view = canvas.canvas.getBoundingClientRect(), widget = node.widgets.find(widget => widget.name === name);
    return [view.x + (node.pos[0] + node.size[0] * .7 + offset[0]) * scale,
            view.y + (node.pos[1] + (widget.last_y ?? widget.y) + 10 + offset[1]) * scale]; }"""


@pytest.fixture(scope="module")
def prepared_server(server):
    """The server with small files under the names that the templates use."""
    provide_files(server.base, "sd15.safetensors", {"clip_l": 32})
    return server


@pytest.fixture(scope="module", params=["classic", "nodes2"])
def ui(request, browser, prepared_server):
    """One page for all tests here, with classic nodes and with Nodes 2.0."""
    with open_page(browser, prepared_server, nodes2=request.param == "nodes2") as page:
        page.page.set_viewport_size(SCREENS["small"])
        yield page
        assert page.unexpected_messages() == []


def open_template(ui, path) -> None:
    """As a click on its card does."""
    ui.js(OPEN, [json.loads(path.read_text(encoding="utf-8")), path.stem])
    ui.settle(400)


def test_templates_open_at_their_note_and_hide_no_wire(ui):
    unreadable, overlapping, hidden = {}, {}, {}
    for number, path in enumerate(ALL_SHIPPED):
        ui.page.set_viewport_size(list(SCREENS.values())[number % 2])
        open_template(ui, path)
        seen = ui.js(SEEN)
        if not (seen["scale"] >= READABLE and seen["isWhole"] and seen["isLeft"] and seen["marks"] is None):
            unreadable[path.stem] = seen
        if found := ui.js(OVERLAPPING):
            overlapping[path.stem] = found
        if not ui.js("() => window.LiteGraph.vueNodesMode"):
            count, beneath = ui.js(HIDDEN_WIRES)
            assert count > 5
            hidden |= {path.stem: beneath} if beneath else {}
    assert unreadable == {} and overlapping == {} and hidden == {}


def test_a_saved_workflow_opens_where_it_was_left(ui):
    open_template(ui, ALL_SHIPPED[0])
    ui.js("() => Object.assign(window.app.canvas.ds, {scale: 0.5})")
    saved = ui.workflow()
    ui.js("saved => window.app.loadGraphData(saved, true, true, 'saved')", saved)
    ui.settle(400)
    assert ui.js("() => window.app.canvas.ds.scale") == pytest.approx(0.5)


class Person:
    """Acts of a person in the page, counted: a click, a text typed, a key, files dropped."""

    def __init__(self, ui):
        self.ui, self.acts = ui, 0

    def click(self, *place: float) -> None:
        self.acts += 1
        self.ui.page.mouse.click(*place)
        self.ui.settle(200)

    def press(self, locator) -> None:
        self.acts += 1
        locator.click()
        self.ui.settle(200)

    def type(self, text: str) -> None:
        self.acts += 1
        self.ui.page.keyboard.press("ControlOrMeta+A")
        self.ui.page.keyboard.type(text)

    def key(self, name: str) -> None:
        self.acts += 1
        self.ui.page.keyboard.press(name)
        self.ui.settle(200)

    def write(self, widget: str, text: str) -> None:
        """Into a text of the subgraph's node."""
        if self.ui.js("() => window.LiteGraph.vueNodesMode"):
            self.press(self.ui.page.get_by_label(widget, exact=True).first)
            self.type(text)
        else:
            self.click(*self._row_at_rest(widget))
            self.ui.page.wait_for_function("() => document.activeElement?.closest('.graphdialog')")
            self.type(text)
            self.key("Enter")

    def _row_at_rest(self, widget: str) -> list[float]:
        """Where it is on the canvas, once a template that was opened has come to its place."""
        before = None
        while (place := self.ui.js(ROW, ["", widget])) != before:
            before = place
            self.ui.settle(400)
        return place

    def drop(self, files: dict[str, bytes]) -> None:
        self.acts += 1
        Tray(self.ui).drop(files, OUTER_TRAY)
        self.ui.page.wait_for_function(DROPPED, arg=[OUTER_TRAY, sorted(files)], timeout=15_000)


def pictures_of_a_dog() -> dict[str, bytes]:
    """Four pictures."""
    return {f"dog-{colour}.png": png(colour) for colour in ("red", "lime", "blue", "white")}


def learn(person: Person, word: str, what: str, pictures: dict[str, bytes]):
    """The three clicks: word, pictures, Run; the run's end."""
    person.write("word", word)
    person.write("what it is", what)
    person.drop(pictures)
    person.ui.js(QUICK_INSIDE, QUICK)  # a training of 3 steps in place of 300
    person.ui.command("Comfy.Canvas.FitView")  # a picture out of sight is not fetched
    person.acts += 1
    return person.ui.run()


def test_a_first_training_takes_few_clicks(ui, prepared_server):
    person = Person(ui)
    person.acts += 1  # Templates, in the page's side bar
    ui.templates("personalize")
    person.acts += 1  # personalize
    person.acts += 1  # the card
    ui.pick_template(THREE_CLICKS)
    run = learn(person, "<bello>", "dog", pictures_of_a_dog())
    assert run.status == "success", run.error.get("exception_message", run)
    assert any(output.get("images") for output in run.outputs.values())
    assert list((prepared_server.base / "models" / "embeddings").glob("bello*"))
    print(f"figure first_training_clicks {person.acts}")
    assert person.acts <= 12


def test_the_subgraph_runs_from_a_blank_canvas(ui, prepared_server):
    ui.js("() => window.app.graph.clear()")
    ui.js("() => Object.assign(window.app.canvas.ds, {scale: 1, offset: [0, 0]})")
    ui.open_node_search()
    ui.page.keyboard.type("Learn my subject")
    ui.page.locator("[role=option]", has_text="Learn my subject").first.wait_for()
    ui.page.keyboard.press("Enter")
    ui.page.wait_for_function("() => window.app.graph.nodes.some(node => node.subgraph)")
    ui.settle(500)
    ui.page.mouse.click(700, 110)  # the node follows the mouse until it is put down
    ui.js("() => { window.app.canvas.ds.offset = [100, 120]; window.app.graph.nodes[0].pos = [0, 0]; }")
    ui.settle(500)
    run = learn(Person(ui), "<waldi>", "dog", pictures_of_a_dog())
    assert run.status == "success", run.error.get("exception_message", run)
    assert list((prepared_server.base / "models" / "embeddings").glob("waldi*"))
    ui.page.locator(".pz-panel:visible").first.wait_for(timeout=10_000)
