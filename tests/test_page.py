"""The training panel in the real page, told about runs that a real training would take long to have."""
from __future__ import annotations

import itertools

import pytest
from PIL import Image

from support.browser import open_page
from support.training_page import TrainingPanel, record, step


@pytest.fixture(scope="module")
def classic_page(browser, server):
    """One page for all tests here: opening it takes longer than any of them."""
    with open_page(browser, server, nodes2=False) as page:
        yield page
        assert page.unexpected_messages() == []


@pytest.fixture(scope="module")
def nodes2_page(browser, server):
    """The same with Nodes 2.0."""
    with open_page(browser, server, nodes2=True) as page:
        yield page
        assert page.unexpected_messages() == []


@pytest.fixture(params=["classic", "nodes2"])
def panel(request, browser, server) -> TrainingPanel:
    """The panel of a new Train node, with classic nodes and with Nodes 2.0."""
    return TrainingPanel.on_new_node(request.getfixturevalue(f"{request.param}_page"))


@pytest.fixture
def classic_panel(classic_page) -> TrainingPanel:
    """The same with classic nodes only."""
    return TrainingPanel.on_new_node(classic_page)


def test_one_step_is_a_dot(panel):
    panel.tell_steps([0.25])
    columns = [column for column, *_ in panel.ink(0)]
    assert 1 <= len(columns) < 20
    assert panel.text("state") == "Step 1 of 1"
    assert "loss 0.25" in panel.text("figures")


def test_equal_losses_are_a_level_line(panel):
    panel.tell_steps([0.1] * 40)
    ink = panel.ink(0)
    width = panel.ui.js("() => document.querySelector('.pz-plot canvas').width")
    assert len(ink) > 0.6 * width
    assert max(bottom for *_, bottom in ink) - min(top for _, top, _ in ink) < 12


def test_losses_that_are_no_numbers_leave_a_gap(panel):
    losses = [0.2 - 0.001 * n for n in range(60)]
    losses[20:40] = [None] * 20
    panel.tell_steps(losses)
    columns = [column for column, *_ in panel.ink(0)]
    gaps = [after - before for before, after in itertools.pairwise(columns)]
    assert max(gaps) > 0.25 * (columns[-1] - columns[0])
    assert sorted(gaps)[-2] < 12, "only one gap"
    panel.tell(step(61, None, 61))
    assert "loss NaN" in panel.text("figures")


def test_a_value_between_two_gaps_is_seen(classic_panel):
    losses = [0.2] + [None] * 200 + [0.1] + [None] * 200 + [0.2]
    classic_panel.tell_steps(losses)
    columns = [column for column, *_ in classic_panel.ink(0)]
    middle = (columns[0] + columns[-1]) / 2
    assert any(abs(column - middle) < 8 for column in columns)


def test_smoothing_is_the_mean_without_the_start_s_bias(classic_panel):
    losses = [1.0, 3.0, None, 2.0]
    classic_panel.tell_steps(losses)
    weights = [0.05 * 0.95 ** age for age in (2, 1, 0)]
    expected = sum(w * v for w, v in zip(weights, [1.0, 3.0, 2.0])) / sum(weights)
    assert f"total, smoothed {expected:.4g}" in classic_panel.text("legend")


def test_each_term_has_a_line_and_can_be_hidden(classic_panel):
    classic_panel.tell_steps([0.3] * 30, parts={"diffusion": 0.2, "CoRe attention": 0.1})
    assert classic_panel.ink(1) and classic_panel.ink(2)
    classic_panel.root.get_by_role("button", name="CoRe attention").click()
    assert classic_panel.ink(1) and not classic_panel.ink(2)


def test_gradient_norms_are_logarithmic_and_zero_is_on_the_lower_edge(classic_panel):
    norms = {"diffusion|embedding": 1.0, "CoRe|embedding": 1e-4, "dead|embedding": 0.0}
    classic_panel.tell_steps([0.3] * 30, norms=norms)
    classic_panel.show("gradients")
    large, small, dead = (classic_panel.ink(line)[-1][1] for line in (1, 2, 3))
    assert large < small <= dead
    assert "diffusion → embedding 1 " in classic_panel.text("legend")
    assert classic_panel.text("legend").endswith("dead → embedding 0")


def test_norms_that_are_all_zero_are_drawn(classic_panel):
    classic_panel.tell_steps([0.3] * 5, norms={"dead|embedding": 0.0})
    classic_panel.show("gradients")
    assert classic_panel.ink(1)


def test_norms_of_some_steps_are_joined(classic_panel):
    classic_panel.tell({"kind": "start", "total": 41, "first_step": 0, "resumed_from": 0},
                       *(step(n, 0.1, 41, norms={"diffusion|embedding": 1.0} if n % 10 == 1 else {})
                         for n in range(1, 42)))
    classic_panel.show("gradients")
    columns = [column for column, *_ in classic_panel.ink(1)]
    assert max(after - before for before, after in itertools.pairwise(columns)) < 4


def test_of_a_very_long_run_a_part_of_the_steps_is_kept(ui):
    """Those with gradient norms among them, here every tenth, and the newest."""
    kept = ui.js("""async () => {
        const {RunHistory} = await import('/extensions/personalize/training/history.js'), history = new RunHistory();
        for (let step = 1; step <= 20001; step++) history.apply({kind: 'steps', run: 'x', records: [{total: 20001, step,
            loss: 1, parts: {}, lr: {}, norms: step === 1 || step % 10 === 0 ? {diffusion: 1} : {}}]});
        return history.records.map(({step, norms}) => [step, 'diffusion' in norms]) }""")
    steps = [step for step, _ in kept]
    assert steps == sorted(set(steps)) and (steps[0], steps[-1]) == (1, 20001)
    assert 1000 <= len(steps) <= 2002 and max(after - before for before, after in itertools.pairwise(steps)) <= 22
    assert sum(has_norms for _, has_norms in kept) >= 0.9 * len(kept)


def test_rate_and_unmeasured_views(panel):
    panel.tell_steps([0.3] * 5)
    panel.show("rate")
    assert panel.text("legend") == "embedding 0.005"
    panel.show("gradients")
    assert panel.text("empty") == "Not measured in this run."


def test_pointer_reads_values_on_a_zoomed_canvas(panel):
    panel.tell_steps([n / 100 for n in range(1, 101)])
    assert panel.ui.js("() => window.app.canvas.ds.scale") != 1
    assert panel.legend_at(49 / 99).startswith("total, each step 0.5 ")


def test_state_time_left_and_end_message(panel):
    panel.event("executing", panel.node_id)
    assert panel.text("state") == "Preparing…"
    assert not any(panel.command_buttons().values())
    panel.tell({"kind": "start", "total": 10, "first_step": 0, "resumed_from": 0}, step(4, 0.2, 10, seconds_left=130))
    assert (panel.text("state"), panel.text("figures")) == ("Step 4 of 10", "loss 0.2 · 2 min 10 s left")
    assert all(panel.command_buttons().values())
    panel.tell({"kind": "end", "step": 4, "total": 10, "stopped": True, "losses": {},
                "message": "Step 4 of 10 is saved: here."})
    assert panel.text("state") == "my-subject-12345678: Step 4 of 10, stopped"
    assert panel.text("message") == "Step 4 of 10 is saved: here."
    assert not any(panel.command_buttons().values())


def test_run_of_another_workflow_is_not_shown(classic_panel):
    others = {"run": "cat-12345678", "workflow": "another"}
    classic_panel.tell({"kind": "start", "total": 10, **others},
                       {**step(4, 0.2, 10), **others})
    assert classic_panel.text("state") == ""
    classic_panel.tell({"kind": "start", "total": 10},
                       {"kind": "end", "step": 9, "total": 9, **others})
    assert classic_panel.text("state") == "Step 0 of 10"


def test_error_sentence_is_on_the_node_until_the_next_run(panel):
    sentence = "Two subjects share the placeholder <dog>; give each Subject node a Concept of its own."
    error = {"node_id": panel.node_id, "node_type": "PersonalizeTrain", "exception_message": sentence + "\n",
             "exception_type": "ValueError", "traceback": [], "executed": [], "prompt_id": "x"}
    panel.event("execution_start", {"prompt_id": "x"})
    panel.event("execution_error", {**error, "node_id": "999"})
    assert panel.text("error") == ""
    panel.tell({"kind": "error", "message": sentence})
    panel.event("execution_error", {**error, "exception_message": "another"})
    assert panel.text("error") == sentence
    assert panel.root.get_by_role("alert").inner_text() == sentence
    panel.event("execution_start", {"prompt_id": "y"})
    assert panel.text("error") == ""
    panel.event("execution_error", error)
    assert panel.text("error") == sentence


def test_continued_run_keeps_its_first_steps(classic_panel):
    classic_panel.tell_steps([0.5] * 10)
    classic_panel.tell({"kind": "start", "total": 20, "first_step": 5, "resumed_from": 5},
                       *(step(n, 0.1, 20) for n in range(6, 9)))
    assert classic_panel.text("state") == "Step 8 of 20"
    assert classic_panel.legend_at(0.02).startswith("total, each step 0.5 ")
    assert classic_panel.legend_at(0.98).startswith("total, each step 0.1 ")


def test_result_of_a_cached_run_is_shown(panel):
    history = [record(n, 0.1 * n, 3) for n in (1, 2, 3)]
    panel.ui.js("""([id, output]) => window.comfyAPI.api.api.dispatchEvent(
        new CustomEvent('executed', {detail: {node: id, display_node: id, output, prompt_id: 'x'}}))""",
                [panel.node_id, {"personalize_training": [
                    {"run": "dog-1", "history": history, "previews": [], "saved": [], "message": "All is saved."}]}])
    panel.ui.settle(300)
    assert panel.text("state") == "dog-1: Step 3 of 3"
    assert panel.text("message") == "All is saved."
    assert panel.ink(0)


def test_a_step_without_its_weights_is_shown_but_not_used(panel):
    ui = panel.ui
    Image.new("RGB", (64, 64)).save(ui.server.base / "output/preview.png")
    image = {"filename": "preview.png", "subfolder": "", "type": "output"}
    panel.tell_steps([0.5] * 4)
    for number, left_out in ((2, True), (4, False)):
        panel.tell({"kind": "preview", "step": number, "image": image}, {
            "kind": "saved", "step": number, "embeddings": [f"embedding:dog-{number}"], "files": [], "part_files": [],
            "left_out": left_out})
    assert panel.previews() == [2, 4]
    panel.root.locator("[data-step='2']").click()
    viewer = ui.page.get_by_role("dialog", name="step 2")
    assert viewer.get_by_label("Text for the prompt").input_value() == "embedding:dog-2"
    assert "weights are saved only at the last step" in viewer.inner_text()
    assert not viewer.get_by_role("button", name="Use this step").is_visible()
    assert panel.widget("use_step") == 0
    ui.page.keyboard.press("Escape")
    panel.root.locator("[data-step='4']").click()
    panel.ui.page.get_by_role("button", name="Use this step").click()
    assert panel.widget("use_step") == 4
    ui.page.get_by_role("dialog", name="step 4").get_by_role("button", name="Do not use this step").wait_for()
    ui.page.keyboard.press("Escape")


@pytest.mark.parametrize("output", [{}, {"personalize_training": []}, {"personalize_training": [{}]},
                                    {"personalize_training": [{"run": "x", "history": [{"step": 1}]}]}])
def test_results_without_content_do_no_harm(classic_panel, output):
    classic_panel.event("executed", {"node": classic_panel.node_id, "output": output})
    assert classic_panel.root.is_visible()


def test_panel_is_neither_in_the_prompt_nor_in_the_workflow(panel):
    panel.tell_steps([0.1] * 3)
    assert "training" not in panel.ui.prompt()[panel.node_id]["inputs"]
    [node] = panel.ui.workflow()["nodes"]
    serialized = next(found["serialized"] for found in panel.ui.graph() if found["id"] == panel.node_id)
    assert node["widgets_values"] == serialized


def test_panel_stays_inside_the_node_and_when_zoomed_out(panel):
    panel.tell_steps([0.1] * 3)
    panel.ui.js("() => { window.app.canvas.ds.scale = 0.3; window.app.canvas.setDirty(true, true) }")
    panel.ui.settle(300)
    assert panel.root.is_visible()
    left, top, width, height = panel.ui.js("""id => { const canvas = window.app.canvas, {scale, offset} = canvas.ds;
        const area = canvas.canvas.getBoundingClientRect(), box = window.app.graph.getNodeById(id).boundingRect;
        const at = (i, start) => start + (box[i] + offset[i]) * scale;
        return [at(0, area.x), at(1, area.y), box[2] * scale, box[3] * scale] }""", panel.node_id)
    box = panel.root.bounding_box()
    assert left <= box["x"] and box["x"] + box["width"] <= left + width + 1
    assert top <= box["y"] and box["y"] + box["height"] <= top + height + 2


def test_preset_writes_its_numbers_and_a_change_makes_it_custom(panel):
    ui, presets = panel.ui, panel.ui.server.get("/api/personalize/presets")
    for name, values in presets.items():
        ui.set_widget(panel.node_id, "preset", name)
        ui.settle(200)
        assert {widget: panel.widget(widget) for widget in values} == values
    assert panel.widget("preset") == name
    ui.set_widget(panel.node_id, "seed", 7)
    assert panel.widget("preset") == name, "no preset says anything of the seed"
    ui.set_widget(panel.node_id, "steps", values["steps"] + 1)
    assert (panel.widget("preset"), panel.widget("steps")) == ("custom", values["steps"] + 1)
