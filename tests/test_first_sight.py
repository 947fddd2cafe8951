"""How the nodes look when they are new: what is folded, what stands first, and the colours of their sockets."""
from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from support.browser import open_page
from support.paths import PACK

MOST_INPUTS = 8  # in sight on a new node
HIGHEST = 760  # pixels at full size: what a screen of 1080 shows beside the page's own bars
COMFYUIS_OWN = ("#FFD500", "#B39DDB", "#FF6E6E", "#FFA931", "#FF9CF9", "#64B5F6", "#81C784", "#A8DADC")
BEHIND = {"dark": "#353535", "light": "#D3D3D3"}  # a node, the lighter of the two, and the canvas, the darker
SIGHT = {  # G. Machado et al., "A Physiologically-based Model for Simulation of Color Vision Deficiency", severity 1
    "usual": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "without red": ((.152286, 1.052583, -.204868), (.114503, .786281, .099216), (-.003882, -.048116, 1.051998)),
    "without green": ((.367322, .860646, -.227968), (.280085, .672501, .047413), (-.01182, .04294, .968881)),
    "without blue": ((1.255528, -.076749, -.178779), (-.078411, .930809, .147602), (.004733, .691367, .3039)),
}
NEW_NODES = """types => { const {app, LiteGraph} = window; app.graph.clear(); let x = 0;
    for (const type of types) { const node = LiteGraph.createNode(type); app.graph.add(node); node.pos = [x, 0];
        x += node.size[0] + 40; }
    app.canvas.ds.scale = 1; app.canvas.ds.offset = [100, 100]; app.canvas.setDirty(true, true); }"""

SEEN_WIDGETS = """type => { const node = window.app.graph.nodes.find(node => node.type === type);
    const widgets = node.widgets ?? [], names = widgets.map(widget => widget.name);
    const isSeen = node.isWidgetRowVisible ?? node.isWidgetVisible;
    if (!window.LiteGraph.vueNodesMode) return names.filter((_, at) => isSeen.call(node, widgets[at])
        && names[at] !== 'more_settings');
    const rows = [...document.querySelectorAll(`[data-node-id="${node.id}"] [data-testid=node-widget]`)];
    return rows.map(row => names.find(name => row.innerText.includes(name)
        || row.querySelector(`[aria-label="${name}"]`)) ?? (row.querySelector('.pz-panel') ? 'training'
        : row.querySelector('.pz-tray') ? 'thumbnails' : row.outerHTML.slice(0, 200))); }"""
WIRE = "() => window.app.canvas.constructor.link_type_colors.PERSONALIZE_CONCEPT"
SOCKET = """() => { const node = window.app.graph.nodes[0], dot = document.createElement('i');
    if (!window.LiteGraph.vueNodesMode) {
        dot.style.color = node.outputs[0].renderingColor(window.app.canvas.colourGetter);
        return dot.style.color; }
    const dots = [...document.querySelectorAll(`[data-node-id="${node.id}"] .slot-dot`)];
    return dots.map(each => getComputedStyle(each).backgroundColor)[0]; }"""
ID = "type => window.app.graph.nodes.find(node => node.type === type).id"
SWITCH = """type => { const node = window.app.graph.nodes.find(node => node.type === type);
    const {ds, canvas} = window.app.canvas;
    const row = node.widgets.find(widget => widget.name === 'more_settings'), view = canvas.getBoundingClientRect();
    return [view.x + (node.pos[0] + node.size[0] / 2 + ds.offset[0]) * ds.scale,
            view.y + (node.pos[1] + row.last_y + 10 + ds.offset[1]) * ds.scale]; }"""


@pytest.fixture(scope="module", params=["classic", "nodes2"])
def ui(request, browser, server):
    """One page for all tests here, with classic nodes and with Nodes 2.0."""
    with open_page(browser, server, nodes2=request.param == "nodes2") as page:
        page.page.set_viewport_size({"width": 2400, "height": 1300})
        yield page
        assert page.unexpected_messages() == []


def new_nodes(ui, *types: str) -> None:
    """Only these on the canvas, side by side, as they are when they are added."""
    ui.js(NEW_NODES, types)
    ui.settle(500)


def seen_widgets(ui, node_type: str) -> list[str]:
    """What a node shows as widgets, from top to bottom: their names, or "" for one that is drawn by the pack."""
    return ui.js(SEEN_WIDGETS, node_type)


def height(ui, node_type: str) -> float:
    """Of the node with its title, in pixels at full size."""
    return ui.js("""type => { const node = window.app.graph.nodes.find(node => node.type === type);
        return window.LiteGraph.vueNodesMode ? document.querySelector(`[data-node-id="${node.id}"]`).offsetHeight
            : node.boundingRect[3]; }""", node_type)


def press_switch(ui, node_type: str) -> None:
    """The row at the node's end that shows the other settings, or hides them again."""
    if ui.js("() => window.LiteGraph.vueNodesMode"):
        ui.page.locator(f"[data-node-id='{ui.js(ID, node_type)}'] [data-testid=advanced-inputs-button]").click()
    else:
        ui.page.mouse.click(*ui.js(SWITCH, node_type))
    ui.settle(300)


def test_a_new_node_shows_what_people_change(ui, node_classes):
    types = [cls.__name__ for cls in node_classes]
    new_nodes(ui, *types)
    shown = {type_: seen_widgets(ui, type_) for type_ in types}
    crowded = {type_: names for type_, names in shown.items() if len(names) > MOST_INPUTS}
    assert crowded == {}
    assert {type_: height(ui, type_) for type_ in types if height(ui, type_) > HIGHEST} == {}


def test_the_chart_and_the_pictures_stand_above_the_settings(ui):
    new_nodes(ui, "PersonalizeTrain", "PersonalizeSubject")
    assert seen_widgets(ui, "PersonalizeTrain")[:4] == ["training", "name", "preset", "steps"]
    assert seen_widgets(ui, "PersonalizeSubject")[:2] == ["thumbnails", "folder"]


def test_the_other_settings_are_one_click_away(ui):
    new_nodes(ui, "PersonalizeTrain")
    folded = seen_widgets(ui, "PersonalizeTrain")
    press_switch(ui, "PersonalizeTrain")
    opened = seen_widgets(ui, "PersonalizeTrain")
    assert {"micro_batch", "optimizer", "use_step"} <= set(opened) - set(folded) and len(opened) > 17
    assert height(ui, "PersonalizeTrain") > 900
    press_switch(ui, "PersonalizeTrain")
    assert seen_widgets(ui, "PersonalizeTrain") == folded


def test_a_folded_setting_with_a_wire_stays_in_sight(ui):
    new_nodes(ui, "PrimitiveInt", "PersonalizeTrain")
    ui.js("""() => { const [number, train] = window.app.graph.nodes;
        number.connect(0, train, train.inputs.findIndex(input => input.name === 'micro_batch')); }""")
    ui.settle(300)
    if ui.js("() => window.LiteGraph.vueNodesMode"):
        ui.page.locator(f"[data-node-id='{ui.js(ID, 'PersonalizeTrain')}']").get_by_text("micro_batch").wait_for()
    else:
        assert "micro_batch" in seen_widgets(ui, "PersonalizeTrain")


def test_values_are_saved_in_the_order_of_the_schema(ui):
    """So that workflows of every version are read, and other programs read ours."""
    new_nodes(ui, "PersonalizeTrain", "PersonalizeSubject")
    train, subject = ui.js("() => window.app.graph.nodes.map(node => node.serialize().widgets_values)")
    assert train[:4] == ["", "custom", 300, 6] and len(train) == 20 and None not in train
    assert subject[:3] == ["", 512, "crop"] and len(subject) == 9 and None not in subject


# ------------------------------------------------------------------------------------------------------- colours
def linear(colour: str) -> np.ndarray:
    """#rrggbb as light."""
    value = np.array([int(colour[at:at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(value <= .04045, value / 12.92, ((value + .055) / 1.055) ** 2.4)


def oklab(light: np.ndarray) -> np.ndarray:
    """B. Ottosson's space, in which equal distances look equally large."""
    cones = np.array([[.4122214708, .5363325363, .0514459929], [.2119034982, .6806995451, .1073969566],
                      [.0883024619, .2817188376, .6299787005]]) @ light
    return np.array([[.2104542553, .793617785, -.0040720468], [1.9779984951, -2.428592205, .4505937099],
                     [.0259040371, .7827717662, -.808675766]]) @ np.cbrt(cones)


def contrast(one: str, other: str) -> float:
    """As WCAG counts it."""
    lights = sorted(float(np.array([.2126, .7152, .0722]) @ linear(each)) + .05 for each in (one, other))
    return lights[1] / lights[0]


def own_colours() -> dict[str, dict[str, str]]:
    """Theme → kind of wire → colour, as js/colours.js gives them."""
    text = (PACK / "js" / "colours.js").read_text(encoding="utf-8")
    rows = re.findall(r'(PERSONALIZE_\w+): \["(#\w{6})", "(#\w{6})"\]', text)
    return {"dark": {kind: dark for kind, dark, _ in rows}, "light": {kind: light for kind, _, light in rows}}


def test_every_kind_of_wire_has_a_colour_of_its_own(node_classes):
    schemas = [cls.GET_SCHEMA() for cls in node_classes]
    kinds = {each.get_io_type() for schema in schemas for each in (*schema.inputs, *schema.outputs)}
    for colours in own_colours().values():
        assert colours.keys() == {kind for kind in kinds if kind.startswith("PERSONALIZE_")}


@pytest.mark.parametrize("theme", BEHIND)
def test_colours_are_told_apart_by_every_kind_of_sight(theme):
    colours = own_colours()[theme].values()
    near = []
    for sight, matrix in SIGHT.items():
        places = {each: oklab(np.clip(np.array(matrix) @ linear(each), 0, 1)) for each in (*colours, *COMFYUIS_OWN)}
        others = itertools.combinations(colours, 2) if sight != "usual" else [
            (one, other) for one in colours for other in (*colours, *COMFYUIS_OWN) if one != other]
        near += [(sight, *pair) for pair in others if np.linalg.norm(places[pair[0]] - places[pair[1]]) < .08]
    assert near == []
    assert [each for each in colours if contrast(each, BEHIND[theme]) < 3] == []


def test_sockets_and_wires_have_them_in_both_themes(ui):
    new_nodes(ui, "PersonalizeConcept", "PersonalizeSubject")
    ui.js("() => { const [concept, subject] = window.app.graph.nodes; concept.connect(0, subject, 0); }")
    for theme in ("light", "dark"):
        ui.js("id => window.app.extensionManager.setting.set('Comfy.ColorPalette', id)", theme)
        ui.settle(500)
        wanted = own_colours()[theme]["PERSONALIZE_CONCEPT"]
        assert ui.js(WIRE) == wanted
        assert ui.js(SOCKET) == ui.js("colour => { const dot = document.createElement('i'); dot.style.color = colour; "
                                      "return dot.style.color; }", wanted)
