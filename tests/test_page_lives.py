"""What the pack draws on nodes stays and is true through every life of its node: the tray of pictures, the training
panel with its chart and previews, and the text of a result. Also run in the newest page: --frontend 1.58.1."""
from __future__ import annotations

import shutil
import uuid

import pytest

from support.browser import open_page
from support.page_lives import OPEN_WORKFLOW, Lives, graph_of_all_parts
from support.page_scripts import WATCH
from support.subject_page import png

OWN = ("4", "6", "7")
OUTER = ("outer", "outer", "outer")
PART_NODES = ("PersonalizeSubject", "PersonalizeTrain", "PersonalizeSaveConcept")


@pytest.fixture(scope="module")
def dogs(server):
    folder = server.base / "input" / "dogs"
    folder.mkdir()
    for name, colour in (("a", "red"), ("b", "lime")):
        (folder / f"{name}.png").write_bytes(png(colour))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module", params=["classic", "nodes2"])
def page(request, browser, server, dogs):
    """One page for all lives, with classic nodes and with Nodes 2.0, after one training."""
    with open_page(browser, server, nodes2=request.param == "nodes2") as ui:
        yield Lives(ui, f"lives-{request.param}")
        assert [text for text in ui.unexpected_messages() if "Missing Link ID when unpacking" not in text] == []


@pytest.fixture
def lives(page):
    """The workflow as it was saved after the run, loaded."""
    page.load()
    return page


def test_load_and_reload_of_the_page(lives):
    lives.expect(OWN)
    lives.reload_page()
    lives.js(WATCH)
    lives.expect(OWN)


def test_paste(lives):
    lives.select()
    lives.press("Control+c", "Control+v")
    pasted = tuple(set(lives.nodes(kind)) - set(OWN) for kind in PART_NODES)
    lives.expect(OWN, tuple(ids.pop() for ids in pasted))


def test_copies_by_dragging_with_alt(lives):
    lives.expect(OWN)
    for node in OWN:
        lives.drag_with_alt(node)
    copies = tuple((set(lives.nodes(kind)) - set(OWN)) for kind in PART_NODES)
    lives.expect(OWN, tuple(ids.pop() for ids in copies))


def test_undo_and_redo(lives):
    lives.select(*OWN)
    lives.press("Delete")
    assert lives.nodes(*PART_NODES) == []
    lives.press("Control+z")
    lives.expect(OWN)
    lives.press("Control+y")
    assert lives.nodes(*PART_NODES) == []
    lives.press("Control+z")
    lives.expect(OWN)


def test_a_subgraph_shows_the_parts_of_its_nodes_and_gives_them_back(lives):
    lives.convert()
    lives.expect(OUTER)
    lives.open_subgraph()
    lives.expect(tuple(lives.nodes(*PART_NODES)))
    lives.command("Comfy.Graph.ExitSubgraph")
    lives.expect(OUTER)
    lives.ui.settle(500)  # the page notes changes a moment after them
    lives.press("Control+z")
    lives.expect(OWN)
    lives.convert()
    lives.unpack()
    lives.expect(tuple(lives.nodes(*PART_NODES)))


def test_a_subgraph_in_a_subgraph(lives):
    lives.select(lives.convert())
    lives.command("Comfy.Graph.ConvertToSubgraph")
    lives.expect(OUTER)
    lives.open_subgraph()
    lives.expect(OUTER)
    lives.open_subgraph()
    lives.expect(tuple(lives.nodes(*PART_NODES)))


def test_another_workflow_and_back(lives):
    lives.convert()
    own = lives.js(OPEN_WORKFLOW)
    lives.to_workflow("Comfy.NewBlankWorkflow")
    assert lives.nodes(*PART_NODES) == []
    lives.back_to(own)
    lives.expect(OUTER)
    lives.js("prompt => window.app.loadApiJson(prompt, 'others')", graph_of_all_parts("others"))
    lives.expect_rows([["4", "thumbnails", "a.png,b.png"], ["6", "training", ",0,false"], ["7", "result", ""]])
    lives.back_to(own)
    lives.expect(OUTER)


def test_a_run_that_ends_while_another_workflow_is_shown(lives):
    lives.ui.load_workflow({**lives.saved, "id": str(uuid.uuid4())})
    for node in ("6", "7"):
        lives.ui.set_widget(node, "name", f"{lives.name}-away")
    lives.ui.set_widget("6", "steps", 12)
    own = lives.js(OPEN_WORKFLOW)
    started, _ = lives.ui.press_run()
    lives.to_workflow("Comfy.NewBlankWorkflow")
    run = lives.ui.wait_for_end(started, timeout=300)
    lives.back_to(own)
    lives.ui.page.locator(".pz-state", has_text="Step 12 of 12").wait_for()
    assert lives.ui.page.locator(".pz-text").input_value() == "\n".join(run.outputs["7"]["text"])


def test_the_other_renderer_and_back(lives):
    lives.expect(OWN)
    lives.switch_renderer()
    lives.expect(OWN)
    lives.switch_renderer()
    lives.expect(OWN)
    lives.convert()
    lives.switch_renderer()
    lives.expect(OUTER)
    lives.switch_renderer()
    lives.expect(OUTER)


def test_a_server_that_comes_back(lives, dogs):
    lives.expect(OWN)
    (dogs / "c.png").write_bytes(png("blue"))
    lives.js("() => window.comfyAPI.api.api.socket.close()")
    lives.ui.page.locator(".pz-tray-item[data-name='c.png']").wait_for(timeout=10_000)
    (dogs / "c.png").unlink()


def test_a_run_is_followed_and_stopped_on_the_subgraph_s_node(lives):
    lives.js("prompt => window.app.loadApiJson(prompt, 'long')",
             graph_of_all_parts(f"{lives.name}-long", steps=3000, save_every=0, preview_every=0))
    lives.convert()
    lives.ui.command("Comfy.Canvas.FitView")
    panel = lives.ui.page.locator(".pz-panel").filter(visible=True)
    started, _ = lives.ui.press_run()
    panel.locator(".pz-state", has_text="of 3000").wait_for(timeout=60_000)
    panel.locator("[data-command=stop]:enabled").click()
    assert lives.ui.wait_for_end(started, timeout=300).status == "success"
    panel.locator(".pz-state", has_text="stopped").wait_for(timeout=5_000)
    text = lives.ui.page.locator(".pz-text").filter(visible=True)
    assert text.input_value().startswith("embedding:")
