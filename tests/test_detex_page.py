"""DETEX Prompt in the real page: training pictures stand on it, and their buttons and its widgets follow each other."""
from __future__ import annotations

import copy
from io import BytesIO

import pytest
from PIL import Image

from support.browser import open_page
from support.detex_files import write
from support.page_scripts import READY, WATCH
from support.subject_page import png

FILE, OTHER, BROKEN = "detex-page.safetensors", "detex-page-other.safetensors", "detex-page-broken.safetensors"
PROMPT = {"1": {"class_type": "PersonalizeDetexPrompt", "inputs": {
    "file": FILE, "prompt": "Photo of a {} on the beach", "pose_of": 0, "background_of": 0, "other_subject": "cat"}}}
COLOURS = ("red", "lime", "blue")


@pytest.fixture(scope="module")
def files(server):
    folder = server.base / "models" / "detex"
    write(folder / FILE, [png(colour) for colour in COLOURS], "pose")
    write(folder / OTHER, [png("yellow"), png("black")], "expression")
    (folder / BROKEN).write_bytes((folder / FILE).read_bytes()[:5000])
    yield folder
    for name in (FILE, OTHER, BROKEN):
        (folder / name).unlink()


@pytest.fixture(scope="module", params=["classic", "nodes2"])
def ui(request, browser, server, files):
    """One page for all tests here, with classic nodes and with Nodes 2.0."""
    with open_page(browser, server, nodes2=request.param == "nodes2") as page:
        yield page
        assert page.unexpected_messages() == []


class Kept:
    """What a person sees and does on DETEX Prompt."""

    def __init__(self, ui, **inputs):
        self.ui, self.root = ui, ui.page.locator(".pz-kept").filter(visible=True)
        prompt = copy.deepcopy(PROMPT)
        prompt["1"]["inputs"].update(inputs)
        ui.js("prompt => window.app.loadApiJson(prompt, 'kept')", prompt)
        ui.command("Comfy.Canvas.FitView")

    def button(self, attribute: str, number: int):
        return self.root.get_by_role("button", name=f"Keep the {attribute} of picture {number}", exact=True)

    def widgets(self) -> tuple[int, int]:
        found = next(node["widgets"] for node in self.ui.graph() if node["type"] == "PersonalizeDetexPrompt")
        return found["pose_of"], found["background_of"]

    def expect(self, *pressed: str, pictures: int = len(COLOURS)) -> None:
        """Wait until the pictures are drawn and exactly these buttons are down, as "pose 2"."""
        self.ui.page.wait_for_function("""([pressed, count]) => {
            const root = [...document.querySelectorAll('.pz-kept')].find(each => each.checkVisibility());
            const images = [...root?.querySelectorAll('img') ?? []];
            const down = [...root?.querySelectorAll('[aria-pressed=true]') ?? []].map(button => button.textContent + ' '
                + button.parentElement.querySelector('.pz-kept-number').textContent);
            return images.length === count && images.every(image => image.naturalWidth > 0)
                && down.sort().join() === pressed.join() }""", arg=[sorted(pressed), pictures], timeout=10_000)


def test_a_click_keeps_an_attribute_and_another_click_lets_go_of_it(ui):
    kept = Kept(ui)
    kept.expect()
    kept.button("pose", 2).click()
    kept.expect("pose 2")
    kept.button("background", 3).click()
    kept.expect("pose 2", "background 3")
    assert kept.widgets() == (2, 3)
    kept.button("pose", 1).click()
    kept.expect("pose 1", "background 3")
    kept.button("background", 3).click()
    kept.expect("pose 1")
    assert kept.widgets() == (1, 0) and ui.prompt()["1"]["inputs"] == {**PROMPT["1"]["inputs"], "pose_of": 1}


def test_the_pictures_are_those_of_the_file(ui):
    kept = Kept(ui)
    kept.expect()
    drawn = [Image.open(BytesIO(image.screenshot())).convert("RGB") for image in kept.root.locator("img").all()]
    middles = [image.getpixel((image.width // 2, image.height * 2 // 3)) for image in drawn]
    for pixel, wanted in zip(middles, ((255, 0, 0), (0, 255, 0), (0, 0, 255)), strict=True):
        assert max(abs(a - b) for a, b in zip(pixel, wanted, strict=True)) < 12


def test_all_is_done_by_keyboard(ui):
    kept = Kept(ui)
    kept.expect()
    kept.button("pose", 1).focus()
    ui.page.keyboard.press("Space")
    kept.expect("pose 1")
    for _ in range(3):
        ui.page.keyboard.press("Tab")
    ui.page.keyboard.press("Enter")
    kept.expect("pose 1", "background 2")
    assert kept.button("background", 2).evaluate("button => button === document.activeElement")
    assert kept.button("background", 2).evaluate("button => getComputedStyle(button).outlineStyle") == "solid"


def test_the_buttons_follow_the_widgets(ui):
    kept = Kept(ui, pose_of=3)
    kept.expect("pose 3")
    ui.set_widget("1", "pose_of", 1)
    ui.set_widget("1", "background_of", 2)
    kept.expect("pose 1", "background 2")
    ui.set_widget("1", "pose_of", 9)
    kept.expect("background 2")


def test_a_click_is_undone(ui):
    kept = Kept(ui)
    kept.expect()
    kept.button("pose", 2).click()
    kept.button("background", 1).click()
    kept.expect("pose 2", "background 1")
    ui.page.keyboard.press("Control+z")
    kept.expect("pose 2")
    ui.page.keyboard.press("Control+z")
    kept.expect()
    ui.page.keyboard.press("Control+y")
    kept.expect("pose 2")
    assert kept.widgets() == (2, 0)


def test_a_saved_workflow_and_a_reload_of_the_page_show_the_same(ui):
    kept = Kept(ui)
    kept.expect()
    kept.button("background", 2).click()
    kept.expect("background 2")
    workflow, prompt = ui.workflow(), ui.prompt()
    ui.command("Comfy.NewBlankWorkflow")
    assert ui.load_workflow(workflow).problems == {}
    kept.expect("background 2")
    assert ui.prompt() == prompt
    ui.settle(800)  # the page keeps the workflow a moment after it was opened
    ui.page.reload(wait_until="domcontentloaded")
    ui.page.wait_for_function(READY, timeout=60_000)
    ui.js(WATCH)
    ui.command("Comfy.Canvas.FitView")
    kept.expect("background 2")


def test_another_file_shows_its_pictures_and_its_word_for_poses(ui):
    kept = Kept(ui, background_of=2)
    kept.expect("background 2")
    ui.set_widget("1", "file", OTHER)
    kept.expect("background 2", pictures=2)
    kept.button("expression", 1).click()
    kept.expect("expression 1", "background 2", pictures=2)
    assert kept.widgets() == (1, 2)


@pytest.mark.parametrize("file, sentence", [
    (BROKEN, "is damaged or no DETEX file"), ("nothing.safetensors", "There is no file 'nothing.safetensors'"),
    ("", "Choose a file that Train has saved with Train DETEX: its pictures appear here.")])
def test_without_pictures_one_sentence_says_why(ui, file, sentence):
    kept = Kept(ui, file=file)
    kept.root.get_by_text(sentence).wait_for(timeout=10_000)
    assert kept.root.locator("img, button").count() == 0
    ui.set_widget("1", "file", FILE)
    kept.expect()
    assert not kept.root.locator(".pz-message").is_visible()


def test_the_written_prompt_is_shown_after_a_run(ui):
    kept = Kept(ui)
    kept.expect()
    run = ui.run()
    assert run.status == "success", run
    assert ui.page.locator(".pz-text").filter(visible=True).input_value() == "Photo of a cat on the beach"


def test_a_subgraph_s_node_shows_them_too(ui):
    kept = Kept(ui)
    kept.expect()
    ui.js("() => window.app.canvas.select(window.app.graph.getNodeById('1'))")
    ui.command("Comfy.Graph.ConvertToSubgraph")
    ui.command("Comfy.Canvas.FitView")
    kept.expect()
    kept.button("pose", 2).click()
    kept.expect("pose 2")
    assert next(iter(ui.prompt().values()))["inputs"]["pose_of"] == 2
