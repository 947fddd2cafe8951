"""The page of a person who reads Chinese or Japanese: nodes, their tooltips, tray and panel, in both renderers."""
from __future__ import annotations

import pytest

from authoring.locales import catalog
from support.page_texts import texts

GRAPH = {
    "1": {"class_type": "PersonalizeSubject", "inputs": {"folder": "example-toy", "size": 512, "fit": "crop"}},
    "2": {"class_type": "PersonalizeTrain", "inputs": {"subject": ["1", 0], "name": "toy", "steps": 3}}}
SLOTS = """() => window.app.graph.nodes.map(node => [node.title, ...[...node.inputs, ...node.outputs].map(
    slot => slot.localized_name)])"""
SWITCH = "async language => { await window.app.extensionManager.setting.set('Comfy.Locale', language) }"
NODES_2 = "() => Boolean(window.LiteGraph.vueNodesMode)"
# Where the input `subject` of Train is on the screen, with classic nodes.
INPUT = """() => {
    const canvas = window.app.canvas, node = window.app.graph.getNodeById(2);
    const slot = node.inputs.findIndex(input => input.name === 'subject');
    const [x, y] = canvas.convertOffsetToCanvas(node.getInputPos(slot)), view = canvas.canvas.getBoundingClientRect();
    return [view.x + x + 4, view.y + y] }"""


@pytest.fixture
def chinese_page(any_ui, server):
    """The page in either renderer, opened by a person whose language is Chinese; then the server is English again."""
    server.post("/api/settings", {"Comfy.Locale": "zh"})
    any_ui.open(nodes2=any_ui.js(NODES_2))
    yield any_ui
    server.post("/api/settings", {"Comfy.Locale": "en"})


def say(ui, part, key, language, **values):
    text = texts(language)[key]["other"]
    for name, value in values.items():
        text = text.replace("{" + name + "}", value)
    ui.page.locator(part).get_by_text(text, exact=True).first.wait_for(timeout=20_000)


def test_nodes_tooltips_tray_and_panel_speak_the_language_of_the_page(chinese_page):
    ui, chinese, japanese = chinese_page, catalog("zh"), catalog("ja")
    ui.js("prompt => window.app.loadApiJson(prompt, 'languages')", GRAPH)
    ui.command("Comfy.Canvas.FitView")
    say(ui, ".pz-panel", "view.gradients", "zh")
    say(ui, ".pz-tray", "tray.count", "zh", count="5")
    (subject, *_), (train, *slots) = ui.js(SLOTS)
    assert (subject, train) == (chinese["node"]["Subject"], chinese["node"]["Train"])
    assert {chinese["name"]["subject"], chinese["name"]["loss_map"]} <= set(slots)
    if not ui.js(NODES_2):
        ui.settle()
        ui.page.mouse.move(*ui.js(INPUT))
        ui.page.get_by_text(chinese["node"]["Pictures and the word they are to be called by."]).wait_for(timeout=20_000)
    ui.js(SWITCH, "ja")
    say(ui, ".pz-panel", "view.gradients", "ja")
    assert japanese["name"]["subject"] in ui.js(SLOTS)[1]
