"""What the tray on Subject says of its pictures, and captions and masks made there, in the real page."""
from __future__ import annotations

import re
import shutil
import time
from contextlib import contextmanager
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from support.browser import open_page
from support.drawn_pictures import BACKGROUNDS, blurred, drawn, encoded
from support.subject_page import Tray, fit_into_view, opened
from support.training_page import training_prompt

# What ComfyUI's mask editor says of a browser without a graphics card, and while it is laid out.
OF_THE_EDITOR = re.compile(r"TypeGPU|No available adapters|pan/zoom")


@pytest.fixture(scope="module", params=["classic", "nodes2"])
def ui(request, browser, server):
    """One page for all tests here, with classic nodes and with Nodes 2.0."""
    with open_page(browser, server, nodes2=request.param == "nodes2") as page:
        yield page
        assert [text for text in page.unexpected_messages() if not OF_THE_EDITOR.search(text)] == []


@pytest.fixture
def dogs(server, ui):
    """A folder in ComfyUI's input folder, emptied in the end."""
    folder = server.base / "input/dogs"
    folder.mkdir()
    yield folder
    ui.page.wait_for_function("() => [...document.images].every(image => image.complete)")
    ui.js("() => window.app.graph.clear()")
    shutil.rmtree(folder)


def save(folder, **pictures: Image.Image) -> list[str]:
    for name, picture in pictures.items():
        (folder / f"{name}.jpg").write_bytes(encoded(picture, quality=92))
    return sorted(f"{name}.jpg" for name in pictures)


def said(tray) -> str:
    """The line above the pictures, when the check has ended."""
    line = tray.root.locator("summary")
    line.wait_for(timeout=20_000)
    return line.inner_text()


def test_one_picture_is_enough_where_it_is_only_drawn_from(ui, dogs):
    names = save(dogs, a=drawn("orange", 0, 256, 256))
    tray = opened(ui, folder="dogs", size=256)  # its images go to a preview, and its subject nowhere
    tray.wait_for(names)
    assert said(tray) == "Checked: nothing found"
    ui.js("""() => { const {graph} = window.app, train = window.LiteGraph.createNode('PersonalizeTrain');
        graph.add(train);
        const subject = graph.getNodeById('2'), out = subject.outputs.findIndex(({name}) => name === 'subject');
        subject.connect(out, train, train.inputs.findIndex(({name}) => name === 'subject'));
        window.app.canvas.setDirty(true, true); }""")
    tray.root.locator("summary", has_text="only 1 picture").wait_for(timeout=10_000)


@contextmanager
def answers_late(page, pattern: str, seconds: float):
    """Holds back the server's answers to requests of this pattern, while it does what they ask."""
    def hold(route):
        answer = route.fetch()
        time.sleep(seconds)
        route.fulfill(response=answer)
    page.route(pattern, hold)
    yield
    page.unroute(pattern)


def test_four_of_five_before_one_cloth_get_a_word(ui, dogs):
    names = save(dogs, **{f"p{pose}": drawn("orange", pose) for pose in range(4)}, p4=drawn("blue", 4))
    tray = opened(ui, folder="dogs")
    tray.wait_for(names)
    assert said(tray) == "4 of 5 before the same background"
    tray.root.locator("summary").press("Enter")
    sentence = tray.root.get_by_text("4 of 5 pictures have the same background (p0.jpg, p1.jpg, p2.jpg, p3.jpg)")
    sentence.wait_for(timeout=5_000)
    assert "replace some by pictures from other places, or give masks" in sentence.inner_text()
    for pose, place in enumerate(BACKGROUNDS):
        save(dogs, **{f"p{pose}": drawn(place, pose)})
    ui.command("Comfy.RefreshNodeDefinitions")
    tray.root.get_by_text("Checked: nothing found").wait_for(timeout=20_000)


def test_marks_name_what_is_wrong_and_the_crop_is_shown(ui, dogs):
    names = save(dogs, a=drawn("orange", 0), b=blurred(drawn("green", 1), 6), c=drawn("blue", 2, 400, 900))
    tray = opened(ui, folder="dogs", size=256)
    tray.wait_for(names)
    assert said(tray) == "blurred, cropped"
    thumbs = {name: tray.root.locator(f"[data-name='{name}'] .pz-tray-thumb") for name in names}
    labels = {name: thumb.get_attribute("aria-label") for name, thumb in thumbs.items()}
    assert labels == {"a.jpg": "a.jpg", "b.jpg": "b.jpg, blurred", "c.jpg": "c.jpg, cropped"}
    assert [thumb.locator(".pz-tray-mark").is_visible() for thumb in thumbs.values()] == [False, True, True]
    box, kept = (thumbs["c.jpg"].locator(place).bounding_box() for place in ("xpath=.", ".pz-tray-crop"))
    assert kept["width"] / box["width"] == pytest.approx(400 / 900, abs=0.03)
    assert kept["height"] / box["height"] == pytest.approx(400 / 900, abs=0.03)
    thumbs["b.jpg"].press("Enter")
    chosen = tray.root.locator("li.pz-selected")
    chosen.wait_for(timeout=5_000)
    assert chosen.inner_text() == "b.jpg is blurred, and the blur is learned; use a sharper picture."
    ui.set_widget("2", "fit", "pad")
    ui.page.wait_for_function("() => document.querySelector('.pz-tray summary').innerText === 'blurred'")
    assert not thumbs["c.jpg"].locator(".pz-tray-crop").is_visible()


def test_captions_are_edited_under_their_pictures(ui, dogs):
    names = save(dogs, a=drawn("orange", 0, 96, 96), b=drawn("green", 1, 96, 96))
    (dogs / "b.caption").write_text("{} outside")
    tray = opened(ui, folder="dogs")
    tray.wait_for(names)
    first, second = (tray.root.get_by_role("textbox", name=f"Caption of {name}") for name in names)
    ui.page.wait_for_function("() => [...document.querySelectorAll('.pz-tray-caption')].some(box => box.value)")
    assert (first.input_value(), second.input_value()) == ("", "{} outside")
    second.fill("{} in the  garden")
    second.press("Escape")
    assert second.input_value() == "{} outside" and (dogs / "b.caption").read_text() == "{} outside"
    with ui.page.expect_response("**/personalize/pictures/about"):
        first.fill("{} on a cloth")
        first.press("Enter")
    assert (dogs / "a.txt").read_text() == "{} on a cloth"
    with ui.page.expect_response("**/personalize/pictures/about"):
        second.fill("{} in the  garden")
        second.blur()
    assert (dogs / "b.caption").read_text() == "{} in the garden" and not (dogs / "b.txt").exists()
    ui.set_widget("2", "captions", "one {}\ntwo {}")
    ui.page.wait_for_function("() => document.querySelector('.pz-tray-caption').value === 'one {}'")
    second.fill("three {}")
    second.press("Enter")
    assert tray.widgets()["captions"] == "one {}\nthree {}"
    assert (dogs / "b.caption").read_text() == "{} in the garden"


def test_the_examples_captions_stay(ui):
    tray = opened(ui, folder="example-toy")
    tray.wait_for([f"toy-{n}.jpg" for n in range(1, 6)])
    box = tray.root.get_by_role("textbox", name="Caption of toy-1.jpg")
    assert not box.is_editable() and "example's pictures stay as they are" in box.get_attribute("title")
    assert not tray.root.locator("[data-name='toy-1.jpg'] .pz-tray-paint").is_visible()


def test_a_mask_is_painted_with_comfyuis_own_editor_shown_and_used(ui, dogs, server):
    names = save(dogs, a=drawn("orange", 0, 256, 256), b=drawn("green", 1, 256, 256))
    tray = opened(ui, folder="dogs", size=256)
    tray.wait_for(names)
    tray.root.get_by_role("button", name="Paint the subject of a.jpg as its mask").press("Enter")
    canvas = ui.page.locator("#maskEditorCanvasContainer")
    canvas.wait_for(timeout=20_000)
    ui.settle(1500)
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    ui.page.mouse.move(x, y)
    ui.page.mouse.down()
    ui.page.mouse.move(x + 20, y, steps=8)
    ui.page.mouse.up()
    ui.settle()
    with ui.page.expect_response("**/personalize/pictures/mask"):
        ui.page.get_by_role("button", name="Save").last.click()
    shade = tray.root.locator("[data-name='a.jpg'] .pz-tray-mask")
    shade.wait_for(timeout=20_000)
    mask = np.asarray(Image.open(dogs / "a-masklabel.png"))
    assert mask.shape == (256, 256) and mask[128, 128] == 255 and mask[10, 10] == 0 and 0.001 < (mask > 0).mean() < 0.2
    assert tray.names() == names, "a mask is no picture"
    overlay = np.asarray(Image.open(BytesIO(ui.page.request.get(server.url + shade.get_attribute("src")).body())))
    assert overlay[10, 10, 3] > 100 and overlay[128, 128, 3] == 0
    tray.root.get_by_role("button", name="Masks", exact=True).click()
    assert not shade.is_visible()
    tray.root.get_by_role("button", name="Masks", exact=True).click()
    assert shade.is_visible() and not tray.root.locator("[data-name='b.jpg'] .pz-tray-mask").is_visible()
    tray.root.get_by_role("button", name="Change the mask of a.jpg").wait_for(state="attached")


def test_masks_are_made_with_the_model_of_train(ui, dogs):
    names = save(dogs, a=drawn("orange", 0, 320, 256), b=drawn("green", 1, 256, 256))
    Image.new("L", (256, 256), 255).save(dogs / "b-masklabel.png")
    prompt = training_prompt("masked")
    prompt["4"]["inputs"] |= {"folder": "dogs", "size": 128}
    del prompt["4"]["inputs"]["images"]
    ui.js("prompt => window.app.loadApiJson(prompt, 'train')", prompt)
    tray = Tray(ui)
    fit_into_view(ui, tray)
    tray.wait_for(names)
    said(tray)
    with answers_late(ui.page, "**/prompt", 3):
        tray.root.get_by_role("button", name="Make masks").click()
        tray.root.get_by_text("The mask of 1 picture is being made.").wait_for(timeout=60_000)
        tray.root.locator("[data-name='a.jpg'] .pz-tray-mask").wait_for(timeout=60_000)
    mask = Image.open(dogs / "a-masklabel.png")
    assert mask.size == (160, 128) and 0 < np.asarray(mask).mean() < 255
    assert np.asarray(Image.open(dogs / "b-masklabel.png")).min() == 255, "a mask that was there stays"
    tray.root.get_by_role("button", name="Make masks").click()
    tray.root.get_by_text("Every picture has a mask").wait_for(timeout=60_000)


def test_masks_cannot_be_made_without_a_model(ui, dogs):
    names = save(dogs, a=drawn("orange", 0, 96, 96))
    tray = opened(ui, folder="dogs")
    tray.wait_for(names)
    said(tray)
    tray.root.get_by_role("button", name="Make masks").click()
    tray.wait_for_error("Connect this Subject to Train first: its model makes the masks.")
