"""The pictures of a run side by side in the page: moved in by keyboard, looked at closely, chosen and exported."""
from __future__ import annotations

import pytest
import safetensors.torch
import torch
from PIL import Image

from support.training_page import TrainingPanel

RUN = "my-subject-12345678"
PROMPTS = ("a photo of <dog>", "<dog> in the snow")
COST = {"seconds": 75.2, "share": 0.3, "expected": 0.22, "bound": 0.25, "every": 10, "asked": 5, "pictures": 4,
        "wanted": 4, "steps": 20}
FOCUSED = "() => document.activeElement.title"


@pytest.fixture
def panel(page, server) -> TrainingPanel:
    """Two prompts from two noises at steps 0, 10 and 20, of which 10 and 20 are saved, and two photographs."""
    shown = TrainingPanel.on_new_node(page)
    shown.tell({"kind": "start", "total": 20, "first_step": 0, "resumed_from": 0},
               {"kind": "photographs", "images": [picture(server, f"photograph-{n}.jpg", n) for n in (1, 2)]},
               *(drawn(server, step, number) for step in (0, 10, 20) for number in range(4)),
               *({"kind": "saved", "step": step, "embeddings": [f"embedding:{RUN}/dog-0000{step}"], "files": [],
                  "part_files": [], "left_out": False} for step in (10, 20)),
               {"kind": "cost", "cost": COST})
    page.settle(300)
    return shown


def picture(server, name: str, shade: int) -> dict:
    folder = server.base / "output" / "personalize" / RUN
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), (20 * shade, 90, 160)).save(folder / name)
    return {"filename": name, "subfolder": f"personalize/{RUN}", "type": "output"}


def drawn(server, step: int, number: int) -> dict:
    return {"kind": "preview", "step": step, "prompt": PROMPTS[number % 2], "noise": number // 2,
            "image": picture(server, f"preview-{step:06d}{f'-{number}' * (number > 0)}.png", number)}


def columns(panel) -> list[str]:
    return [cell.inner_text().strip() for cell in panel.root.locator(".pz-grid thead th").all()]


def test_columns_are_steps_beside_photographs_and_rows_are_prompts_and_noises(panel):
    assert columns(panel) == ["photographs", "0", "10", "20"]
    assert panel.previews() == [0, 10, 20] * 4
    names = [button.get_attribute("title") for button in panel.root.locator("[data-step='10']").all()]
    assert [name.partition(".")[0] for name in names] == [
        f"Step 10: {prompt}, noise {noise}" for prompt in PROMPTS for noise in (1, 2)]
    assert panel.root.get_by_role("img", name="Photograph of the subject").count() == 4
    assert panel.root.get_by_role("grid", name="Pictures by step").is_visible()
    cost = panel.root.locator(".pz-grid-cost")
    assert cost.inner_text() == "· 1 min 15 s so far, 22 % of the run's time; every 10 steps instead of 5"
    box, last = panel.root.bounding_box(), panel.root.locator(".pz-thumbnail").last.bounding_box()
    assert last["y"] + last["height"] <= box["y"] + box["height"], "the node has become as high as its pictures need"
    panel.tell({"kind": "cost", "cost": {**COST, "expected": None, "every": 5}})
    assert cost.inner_text() == "· 1 min 15 s so far", "before the first step nobody knows what one takes"


def test_the_keyboard_moves_in_the_grid_and_looking_does_not_choose(panel):
    ui = panel.ui
    assert panel.root.locator(".pz-thumbnail[tabindex='0']").count() == 1
    panel.root.locator(".pz-thumbnail[tabindex='0']").focus()
    for key, place in (("Home", f"Step 0: {PROMPTS[0]}, noise 1"), ("ArrowRight", f"Step 10: {PROMPTS[0]}, noise 1"),
                       ("ArrowDown", f"Step 10: {PROMPTS[0]}, noise 2"),
                       ("ArrowDown", f"Step 10: {PROMPTS[1]}, noise 1"), ("End", f"Step 20: {PROMPTS[1]}, noise 1"),
                       ("ArrowRight", f"Step 20: {PROMPTS[1]}, noise 1"), ("Delete", f"Step 20: {PROMPTS[1]}, noise 1"),
                       ("ArrowUp", f"Step 20: {PROMPTS[0]}, noise 2")):
        ui.page.keyboard.press(key)
        assert ui.js(FOCUSED).startswith(f"{place}. "), key
    ui.page.keyboard.press("Enter")
    viewer = ui.page.get_by_role("dialog", name="step 20")
    captions = ui.page.locator("dialog figcaption")
    assert [each.strip() for each in captions.all_inner_texts()] == ["Photograph of the subject", "step 0", "step 20"]
    assert f"{PROMPTS[0]}, noise 2 (2 of 4)" in viewer.inner_text()
    viewer.get_by_role("button", name="Keep beside").click()
    ui.page.keyboard.press("ArrowLeft")
    ui.page.keyboard.press("ArrowDown")
    viewer = ui.page.get_by_role("dialog", name="step 10")
    assert [each.strip() for each in captions.all_inner_texts()][1:] == ["step 0", "step 10", "step 20"]
    assert f"{PROMPTS[1]}, noise 1 (3 of 4)" in viewer.inner_text()
    ui.page.keyboard.press("+")
    sizes = ui.js("() => [...document.querySelectorAll('.pz-pan')].map(pan => pan.scrollWidth / pan.clientWidth)")
    assert len(sizes) == 4 and all(size == pytest.approx(2, rel=0.02) for size in sizes)
    ui.js("() => { const pans = document.querySelectorAll('.pz-pan'); pans[1].scrollLeft = pans[1].clientWidth / 2 }")
    ui.settle(100)
    places = ui.js("() => [...document.querySelectorAll('.pz-pan')].map(pan => pan.scrollLeft / pan.clientWidth)")
    assert places == pytest.approx([0.5] * 4, rel=0.02), "all show the same place"
    assert panel.widget("use_step") == 0 and columns(panel)[1:] == ["0", "10", "20"]
    viewer.get_by_role("button", name="Use this step").click()
    assert panel.widget("use_step") == 10 and columns(panel)[1:] == ["0", "step 10, chosen", "20"]
    ui.page.keyboard.press("Escape")
    assert ui.js("id => !!window.app.graph.getNodeById(id)", panel.node_id), "no key has deleted the node"


def test_a_step_is_exported_from_the_large_view(panel, server):
    ui, place = panel.ui, f"{RUN}/dog-000010.safetensors"
    (server.base / "models/embeddings" / place).parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({"clip_l": torch.ones(1, 32)}, server.base / "models/embeddings" / place,
                                {"personalize": "1", "run": RUN, "step": "10", "placeholder": "<dog>"})
    panel.root.locator("[data-step='10']").first.click()
    viewer = ui.page.get_by_role("dialog", name="step 10")
    viewer.get_by_role("button", name="Export").click()
    said = viewer.get_by_role("status").filter(has_text="Step 10 is in output/personalize/exports/my-subject-step10")
    said.wait_for()
    folder = server.base / said.inner_text().removeprefix("Step 10 is in ").removesuffix(".")
    ui.page.keyboard.press("Escape")
    viewer.wait_for(state="hidden")
    panel.root.locator("[data-step='10']").first.click()
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert names == {"01.png", "02.png", "03.png", "04.png", "photograph-1.jpg", "photograph-2.jpg",
                     "dog-000010.safetensors", "how-to-use.txt"}
    ui.page.keyboard.press("ArrowLeft")
    assert not ui.page.get_by_role("dialog", name="step 0").get_by_role("button", name="Export").is_visible()
    ui.page.keyboard.press("Escape")
