"""What the pack draws on nodes by keyboard alone, and as a screen reader is told of it: real key presses, and the
page's tree of roles and names, with classic nodes and with Nodes 2.0."""
from __future__ import annotations

import re
import shutil

import pytest

from support.subject_page import DOGS, opened
from support.training_page import TrainingPanel, step

FOCUSED = """() => { const {activeElement: focused} = document, {command, view, line, step} = focused.dataset;
    return command ?? view ?? line ?? step ?? (focused.id
        || focused.className.split(' ').find(name => name.startsWith('pz-')) || focused.tagName) }"""
SELECT_ALL = """() => { const {canvas} = window.app; canvas.graph.nodes.forEach(node => canvas.select(node)) }"""
PICTURE = "() => document.activeElement.closest('.pz-tray-item').dataset.name"
NODES = "() => window.app.graph.nodes.length"
COUNT_SAID = """() => { window.said = 0; const count = () => window.said++;
    for (const live of document.querySelectorAll('.pz-panel :is([role=status], [role=alert], [aria-live])'))
        new MutationObserver(count).observe(live, {childList: true, characterData: true, subtree: true}) }"""


@pytest.fixture
def panel(page):
    """The panel of a run that is at step 4 of 10."""
    panel = TrainingPanel.on_new_node(page)
    panel.tell({"kind": "start", "total": 10, "first_step": 0, "resumed_from": 0},
               *(step(number, 0.5 - number / 10, 10) for number in range(1, 5)))
    return panel


def pressed(page, *keys: str) -> str:
    """What has the focus after these keys."""
    for key in keys:
        page.page.keyboard.press(key)
    page.settle(50)
    return page.js(FOCUSED)


def test_tab_goes_through_the_panel_and_its_lines(panel, page):
    panel.root.locator("[data-command=stop]").focus()
    order = [pressed(page, "Tab") for _ in range(9)]
    wanted = ["save", "sample", "loss", "gradients", "rate", "pz-button", "pz-chart"]
    assert [name for name in order if name in wanted] == wanted
    assert pressed(page, "Shift+Tab") in order


def test_arrow_keys_read_the_chart(panel, page):
    chart = panel.root.get_by_role("slider", name=re.compile("^Loss from step 1 to 4"))
    chart.focus()
    assert pressed(page, "ArrowLeft") == "pz-chart"
    assert chart.get_attribute("aria-valuetext").startswith("Step 3: total, each step 0.2")
    assert "0.2" in panel.text("legend")
    pressed(page, "Home")
    assert chart.get_attribute("aria-valuetext").startswith("Step 1: ") and chart.get_attribute("aria-valuenow") == "1"
    pressed(page, "End", "ArrowRight")
    assert chart.get_attribute("aria-valuetext").startswith("Step 4: ")


def test_keys_in_a_part_are_not_the_page_s(panel, page):
    page.js(SELECT_ALL)
    panel.root.locator("[data-view=rate]").focus()
    pressed(page, "Delete", "Backspace", "w", "Delete")
    assert page.js(NODES) == 1, "Delete on a button has deleted the node"
    assert page.page.locator(".pz-panel").count() == 1
    assert pressed(page, "Escape") == "graph-canvas"
    pressed(page, "Delete")
    assert page.js(NODES) == 0, "with the focus on the graph, Delete is the page's again"


def test_roles_and_names_say_what_is_drawn(panel, page):
    tree = page.page.locator("body").aria_snapshot()
    for line in ('region "Training', 'group "Commands"', 'button "Stop"', 'progressbar "Training progress"',
                 'group "Chart"', 'button "Loss" [pressed]', 'slider "Loss from step 1 to 4',
                 'group "Lines of the chart"'):
        assert line in tree, tree


def test_nothing_is_said_at_every_step(panel, page):
    page.js(COUNT_SAID)
    panel.tell(*(step(number, 0.1, 10) for number in range(5, 9)))
    assert panel.text("state").startswith("Step 8 of 10")
    assert page.js("() => window.said") == 0
    panel.tell({"kind": "end", "step": 10, "total": 10, "message": "All is saved."})
    assert page.js("() => window.said") > 0, "what matters is said"


def test_pictures_are_walked_through_and_left_out(page, server):
    tray = opened(page)
    tray.drop(DOGS)
    tray.wait_for(["blue.png", "green.png", "red.png"])
    tray.root.locator(".pz-tray-thumb").first.focus()
    assert tray.root.locator(".pz-tray-thumb[tabindex='0']").count() == 1, "one stop of the Tab key"
    assert pressed(page, "ArrowRight", "Tab", "Tab", "Tab") == "pz-tray-caption"
    assert page.js(PICTURE) == "green.png", "what belongs to a picture is reached from it"
    assert not pressed(page, "Tab").startswith("pz-tray"), "and no other picture is in between"
    tray.root.locator("[data-name='green.png'] .pz-tray-thumb").focus()
    pressed(page, "Delete")
    tray.wait_for(["blue.png", "red.png"])
    page.settle(100)
    assert page.js(PICTURE) == "red.png"
    assert pressed(page, "Home", "Shift+Tab", "Escape") == "graph-canvas"
    page.page.wait_for_load_state("networkidle")
    page.js("() => window.app.graph.clear()")
    shutil.rmtree(server.base / "input" / "my-dog")
