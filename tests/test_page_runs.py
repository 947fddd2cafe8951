"""Looking, choosing, stopping and continuing on the page: what the panel says that Run will do is what it does."""
from __future__ import annotations

import functools

import pytest

from support.training_page import finished

TO_SUBGRAPH = """() => { const node = window.app.graph.getNodeById('6');
    return String(window.app.graph.convertToSubgraph(new Set([node])).node.id) }"""


@pytest.fixture
def start(start):
    """As everywhere, but what was trained is gone on with."""
    return functools.partial(start, resume="continue")


def stop_early(ui, panel) -> int:
    """Press Run, then Stop; the step at which it ended."""
    prompt_id, _ = ui.press_run()
    panel.wait_for_step(2)
    panel.press("stop")
    assert ui.wait_for_end(prompt_id).status == "success"
    assert panel.text("state").endswith("stopped")
    return panel.first_and_last_step()[1]


def continued(ui, panel):
    """Press Continue and wait for the end of the run that it queues."""
    before = ui.js("() => Object.keys(window.testWatch.ended).length")
    panel.root.locator("[data-act=continue]").click()
    ui.page.wait_for_function("n => Object.keys(window.testWatch.ended).length > n", arg=before, timeout=60_000)
    ui.settle()


def test_stop_is_kept_and_continue_is_a_button(any_ui, start, server, request):
    panel = start(any_ui, f"kept-{request.node.callspec.id}", steps=40)
    assert panel.plan("Run trains") == "Run trains 40 steps."
    step = stop_early(any_ui, panel)
    said = f"Run returns step {step} of 40, where you stopped it."
    assert panel.plan("returns") == f"{said} Continue"
    if request.node.callspec.id == "classic":
        workflow = any_ui.workflow()
        any_ui.page.goto("about:blank")  # a page that is open complains about the server that is gone
        server.restart()
        any_ui.open()
        any_ui.load_workflow(workflow)
        assert panel.plan("returns") == f"{said} Continue"
    finished(any_ui)
    assert panel.first_and_last_step()[1] == step, "the same with ComfyUI's cache and after a restart"
    panel.plan("returns")
    continued(any_ui, panel)
    assert panel.first_and_last_step() == [1, 40]
    assert panel.plan("trained already") == "Run returns step 40 of 40, which is trained already."
    any_ui.set_widget(panel.node_id, "steps", 41)
    assert panel.plan("continues") == "Run continues from step 40: it trains 1 more step, to 41. Continue"


def test_looking_changes_nothing_and_a_choice_falls_away_with_its_settings(any_ui, start, request):
    panel = start(any_ui, f"choice-{request.node.callspec.id}", steps=4, save_every=2, preview_every=2)
    finished(any_ui)
    plan, prompt = panel.plan("returns"), any_ui.prompt()
    panel.root.locator("[data-step='2']").click()
    assert (any_ui.prompt(), panel.text("plan-line")) == (prompt, plan), "looking changes nothing"
    any_ui.page.get_by_role("button", name="Use this step", exact=True).click()
    any_ui.page.keyboard.press("Escape")
    assert panel.plan("chose") == "Run returns step 2 of 4, which you chose. Forget the choice"
    workflow = any_ui.workflow()
    any_ui.load_workflow(workflow)
    assert panel.plan("chose"), "a choice is kept with the workflow"
    finished(any_ui)

    any_ui.set_widget(panel.node_id, "seed", 1)
    run = any_ui.prompt()[panel.node_id]["inputs"]["use_step_of"]
    expected = f"Settings changed: the choice of step 2 of {run} does not apply. Run trains 4 steps. Forget the choice"
    assert panel.plan("trains") == expected
    finished(any_ui)
    panel.plan("trained already")
    panel.root.get_by_role("button", name="Forget the choice").click()
    assert panel.widget("use_step") == 0 and panel.widget("use_step_of") == ""
    panel.root.locator("[data-act=forget]").wait_for(state="hidden")
    assert panel.plan("Run returns") == "Run returns step 4 of 4, which is trained already."


def test_continue_and_start_over_from_a_subgraph(any_ui, start, request):
    panel = start(any_ui, f"within-{request.node.callspec.id}", steps=40)
    step = stop_early(any_ui, panel)
    any_ui.js(TO_SUBGRAPH)
    panel.root = any_ui.page.locator(".pz-panel").filter(visible=True)  # Train within the subgraph keeps its own
    any_ui.settle(600)
    any_ui.command("Comfy.Canvas.FitView")
    any_ui.settle(300)
    assert panel.plan("returns") == f"Run returns step {step} of 40, where you stopped it. Continue"
    continued(any_ui, panel)
    assert panel.plan("trained already") == "Run returns step 40 of 40, which is trained already."


def test_a_choice_on_a_subgraphs_node_falls_away_with_its_settings(any_ui, start, request):
    panel = start(any_ui, f"within-choice-{request.node.callspec.id}", steps=2, save_every=1, preview_every=1)
    finished(any_ui)
    any_ui.js(TO_SUBGRAPH)
    panel.root = any_ui.page.locator(".pz-panel").filter(visible=True)
    any_ui.settle(600)
    any_ui.command("Comfy.Canvas.FitView")
    panel.root.locator("[data-step='1']").click()
    any_ui.page.get_by_role("button", name="Use this step", exact=True).click()
    any_ui.page.keyboard.press("Escape")
    assert panel.plan("chose") == "Run returns step 1 of 2, which you chose. Forget the choice"
    run = panel.text("state").split(":")[0]
    inputs = next(node["inputs"] for node in any_ui.prompt().values() if node["class_type"] == "PersonalizeTrain")
    assert (inputs["use_step"], inputs["use_step_of"]) == (1, run)
    any_ui.js("""() => { const inside = window.app.graph.nodes.find(node => node.subgraph).subgraph.nodes;
        const {widgets} = inside.find(node => node.type === 'PersonalizeTrain');
        widgets.find(widget => widget.name === 'batch_size').value = 1;
        window.app.canvas.setDirty(true, true); }""")
    assert panel.plan("trains").startswith(f"Settings changed: the choice of step 1 of {run} does not apply.")


def test_start_over_is_a_wish_for_one_run(ui, start):
    panel = start(ui, "over", steps=2, resume="start over")
    assert panel.plan("over") == "Run starts over: it trains 2 steps from the beginning."
    finished(ui)
    assert panel.widget("resume") == "continue"
    assert panel.plan("returns") == "Run returns step 2 of 2, which is trained already."


def test_a_deletion_is_a_wish_for_one_run(ui, start):
    panel = start(ui, "thinned", steps=2, save_every=1)
    finished(ui)
    run = panel.text("state").split(":")[0]
    manage = {"class_type": "PersonalizeManageSteps",
              "inputs": {"run": run, "operation": "keep only these steps", "step_numbers": "2"}}
    ui.js("prompt => window.app.loadApiJson(prompt, 'manage')", {"1": manage})
    report = ui.page.locator(".pz-text")
    finished(ui)
    assert " deleted" in report.input_value()
    assert ui.graph()[0]["widgets"]["operation"] == "list"
    finished(ui)
    assert " deleted" not in report.input_value() and "step 2 " in report.input_value()


def test_a_graph_at_rest_is_asked_for_once(ui, start):
    panel = start(ui, "at-rest", steps=2)
    panel.plan("Run trains")
    ui.settle(2000)  # the pointer that came to the panel has asked, too
    asked = []
    ui.page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/plan") else None)
    ui.page.wait_for_timeout(2000)
    ui.page.mouse.click(5, 450)
    ui.page.wait_for_timeout(1000)
    assert not asked
