"""The training panel during and after real trainings of a tiny checkpoint, started in the real page."""
from __future__ import annotations

import re
import uuid

from support.training_page import finished


def test_run_previews_and_use_of_a_step(any_ui, start, server, request):
    panel = start(any_ui, f"steps-{request.node.callspec.id}", steps=6, save_every=2, preview_every=2)
    finished(any_ui)
    assert panel.text("state").endswith("Step 6 of 6")
    assert panel.text("message").startswith("Step 6 of 6 is saved")
    assert panel.ink(0)
    assert panel.previews() == [0, 2, 4, 6]

    panel.root.locator("[data-step='4']").click()
    viewer = any_ui.page.get_by_role("dialog", name="step 4")
    assert viewer.locator(".pz-current img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 64
    text = viewer.get_by_label("Text for the prompt").input_value()
    assert (server.base / "models/embeddings" / f"{text.removeprefix('embedding:')}.safetensors").is_file()
    assert panel.widget("use_step") == 0, "looking at a step does not use it"
    viewer.get_by_role("button", name="Use this step").click()
    assert panel.widget("use_step") == 4
    any_ui.page.keyboard.press("ArrowLeft")
    any_ui.page.get_by_role("dialog", name="step 2").wait_for()
    any_ui.page.keyboard.press("Escape")
    viewer.wait_for(state="hidden")
    assert panel.widget("use_step") == 4, "looking at another step does not use it"

    finished(any_ui)
    assert panel.text("state").endswith("Step 6 of 6"), "the chart stays, nothing was trained"
    assert panel.root.locator(".pz-chosen").inner_text().strip() == "step 4, chosen"
    panel.root.get_by_role("button", name="last", exact=True).click()
    assert panel.widget("use_step") == 0


def test_embedding_text_is_copied(ui, start):
    panel = start(ui, "copied", steps=2, save_every=1, preview_every=1)
    finished(ui)
    ui.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    panel.root.locator("[data-step='1']").click()
    viewer = ui.page.get_by_role("dialog", name="step 1")
    viewer.get_by_role("button", name="Copy").click()
    viewer.get_by_role("button", name="Copied").wait_for()
    assert ui.js("() => navigator.clipboard.readText()") == viewer.get_by_label("Text for the prompt").input_value()


def test_one_step(any_ui, start, request):
    panel = start(any_ui, f"one-{request.node.callspec.id}", steps=1, save_every=0, preview_every=0)
    finished(any_ui)
    assert panel.text("state").endswith("Step 1 of 1")
    assert panel.ink(0)
    assert panel.previews() == []
    panel.show("gradients")
    assert re.search(r"→ \S+ \S+", panel.text("legend"))


def test_cached_result_is_shown_by_a_page_that_never_saw_the_run(ui, start):
    panel = start(ui, "cached", steps=2, resume="continue")
    workflow = ui.workflow()
    finished(ui)
    ui.open()
    ui.load_workflow({**workflow, "id": str(uuid.uuid4())})
    assert panel.text("state") == "", "another workflow has run it"
    prompt_id, _ = ui.press_run()
    assert ui.wait_for_end(prompt_id).status == "success"
    cached = ui.js("() => window.testWatch.events.find(([name]) => name === 'execution_cached')[1].nodes")
    assert panel.node_id in cached
    assert panel.text("state").endswith("Step 2 of 2")
    assert panel.ink(0)


def test_commands_during_a_run(any_ui, start, server, request):
    panel = start(any_ui, f"stopped-{request.node.callspec.id}", steps=100_000, save_every=0, preview_every=0)
    assert not any(panel.command_buttons().values())
    prompt_id, _ = any_ui.press_run()
    panel.wait_for_step(2)
    assert all(panel.command_buttons().values())
    panel.press("sample")
    panel.root.locator("[data-step]").first.wait_for()
    panel.press("save")
    panel.press("stop")
    assert any_ui.wait_for_end(prompt_id).status == "success"
    assert panel.text("state").endswith("stopped")
    file = re.search(r"is saved: (\S+\.safetensors)", panel.text("message")).group(1)
    assert (server.base / file).is_file()
    assert not any(panel.command_buttons().values())


def test_page_reloaded_in_mid_run_and_after_it(ui, start):
    panel = start(ui, "reloaded", steps=100_000, save_every=0, preview_every=0)
    workflow = ui.workflow()
    prompt_id, _ = ui.press_run()
    panel.wait_for_step(3)
    ui.open()
    ui.load_workflow(workflow)
    panel.wait_for_step(4)
    assert panel.first_and_last_step()[0] == 1
    panel.press("stop")
    assert ui.wait_for_end(prompt_id).status == "success"
    done = panel.text("state")
    assert done.endswith("stopped")
    workflow = ui.workflow()
    ui.open()
    ui.load_workflow(workflow)
    panel.root.locator(".pz-message").wait_for()
    assert panel.text("state") == done
    assert panel.first_and_last_step()[0] == 1
    assert panel.ink(0)


def test_reason_of_a_failure_is_on_the_node(ui, start):
    panel = start(ui, "inside", steps=1, use_step=7)
    run = ui.run()
    assert run.status == "error"
    assert panel.text("error") == run.error["exception_message"].strip()
    assert "use_step is 7 but this run has saved steps none" in panel.text("error")
    ui.set_widget(panel.node_id, "use_step", 0)
    finished(ui)
    assert panel.text("error") == ""
