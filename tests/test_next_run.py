"""What Train will do is told before Run, and is what it does: with ComfyUI's cache, without it, and after a restart."""
from __future__ import annotations

import copy
from pathlib import Path

import comfy.model_management
import numpy as np
import pytest
from PIL import Image

from personalize.nodes.training.graph_signature import Graph, NotKnown
from personalize.nodes.training.next_run import RESULTS
from personalize.nodes.training.run_folder import forget_stop, saved_report
from personalize.nodes.training.told_plan import told
from support.failures import PromptFailed
from support.training_graph import CHANGES, Same, whole_graph, write_inputs
from support.training_page import TRAIN_NODE, training_prompt


class Node:
    """A Train node in a graph, run by ComfyUI's executor with its cache of node results."""

    def __init__(self, execute, name: str, **inputs):
        self._execute, self._session = execute, execute.session()
        self.prompt = training_prompt(name, **{"resume": "continue", **inputs})
        del self.prompt["7"]

    def set(self, **inputs) -> Node:
        self.prompt[TRAIN_NODE]["inputs"].update(inputs)
        return self

    def says(self) -> str:
        """What Run will do, in a few words."""
        plan = told(copy.deepcopy(self.prompt), TRAIN_NODE)
        void = plan.get("choice", {}).get("void")
        done = f"{plan['act']} {plan.get('step')} of {plan.get('steps')} {plan.get('why')}".strip()
        return f"{done}, choice void: {void}" if void else done

    def run(self) -> dict:
        """The report that the node shows."""
        shown = self._session(copy.deepcopy(self.prompt)).ui[TRAIN_NODE]["personalize_training"][0]
        return shown

    def restart(self) -> None:
        """What was only in memory is lost."""
        self._session = self._execute.session()
        RESULTS.__init__()


@pytest.fixture
def node(execute, tiny_checkpoints, request):
    """Call with inputs of Train for a Node, which has run nothing yet."""
    name = request.node.name.removeprefix("test_")[:60]
    return lambda **inputs: Node(execute, name, **inputs)


def stop_at(after_step, step):
    after_step(step, lambda live: live.command("stop"))


def test_a_new_run_a_finished_one_and_more_or_fewer_steps(node, steps_taken):
    train = node(steps=3)
    assert train.says() == "trains 0 of 3"
    train.run()
    for _ in range(2):
        assert train.says() == "returns 3 of 3 finished"
        assert len(train.run()["history"]) == 3
        train.restart()
    assert steps_taken == [1, 2, 3]
    assert train.set(steps=5).says() == "continues 3 of 5"
    train.run()
    assert steps_taken == [1, 2, 3, 4, 5]
    assert train.set(steps=3).says() == "returns 3 of 3 finished"
    assert train.set(steps=2).says() == "trains 0 of 2", "the first state that was kept is that of step 3"
    assert train.set(steps=5, seed=1).says() == "trains 0 of 5"
    train.set(seed=0, save_every=1, preview_prompt="{} asleep", micro_batch=1)
    assert train.says() == "returns 5 of 5 finished"


def test_a_stop_is_kept_with_the_cache_and_without_until_the_run_is_continued(node, steps_taken, after_step):
    train = node(steps=5)
    stop_at(after_step, 2)
    run = train.run()["run"]
    stop_at(after_step, 0)
    for _ in range(2):
        assert train.says() == "returns 2 of 5 stopped"
        assert len(train.run()["history"]) == 2
        train.restart()
    train.run()
    assert train.set(steps=6).says() == "continues 2 of 6", "other steps in all are another wish"
    train.set(steps=5)
    forget_stop(run)  # as the button Continue does
    assert train.says() == "continues 2 of 5"
    assert len(train.run()["history"]) == 5, "although ComfyUI has a result of the same inputs"
    assert train.says() == "returns 5 of 5 finished" and steps_taken == [1, 2, 3, 4, 5]


def test_continue_stopped_is_the_button_for_graphs_without_a_page(node, steps_taken, after_step):
    train = node(steps=4)
    stop_at(after_step, 2)
    train.run()
    stop_at(after_step, 0)
    assert train.set(resume="continue stopped").says() == "continues 2 of 4"
    train.run()
    assert train.says() == train.set(resume="continue").says() == "returns 4 of 4 finished"
    assert steps_taken == [1, 2, 3, 4]


def test_an_interrupted_run_goes_on_by_itself(node, steps_taken, after_step):
    train = node(steps=4)
    after_step(2, lambda live: comfy.model_management.interrupt_current_processing())
    with pytest.raises(PromptFailed):
        train.run()
    after_step(0, None)
    assert train.says() == "continues 2 of 4"
    train.restart()
    assert train.says() == "continues 2 of 4"
    train.run()
    assert steps_taken == [1, 2, 3, 4]


def test_start_over_does_so_each_time_whatever_the_cache_holds(node, steps_taken):
    train = node(steps=2, resume="start over")
    assert train.says() == "starts over 0 of 2"
    train.run()
    assert train.says() == "starts over 0 of 2"
    train.run()
    assert steps_taken == [1, 2, 1, 2]
    assert train.set(resume="continue").says() == "returns 2 of 2 finished"


def test_a_choice_belongs_to_its_run(node, steps_taken):
    train = node(steps=4, save_every=2)
    run = train.run()["run"]
    assert train.set(use_step=2, use_step_of=run).says() == "returns 2 of 4 chosen"
    train.run()
    assert train.set(seed=1).says() == "trains 0 of 4, choice void: settings"
    assert len(train.run()["history"]) == 4, "in place of an error"
    assert train.says() == "returns 4 of 4 finished, choice void: settings"
    assert train.set(seed=0).says() == "returns 2 of 4 chosen", "the settings of the run bring its choice back"
    Path(saved_report(run)["saved"][0]["files"][0]).unlink()
    assert train.says() == "returns 4 of 4 finished, choice void: deleted"
    taken = list(steps_taken)
    assert len(train.run()["history"]) == 4 and steps_taken == taken
    assert train.set(use_step_of="").says() == "fails 2 of 4 chosen", "as graphs of earlier versions ask for it"
    with pytest.raises(PromptFailed, match="use_step is 2 but this run has saved steps 4"):
        train.run()


def test_deleted_files_are_trained_again_although_the_result_is_in_the_cache(node, execute, steps_taken):
    train = node(steps=2)
    run = train.run()["run"]
    execute({"1": {"class_type": "PersonalizeManageSteps", "inputs": {
        "run": run, "operation": "delete the whole run", "step_numbers": ""}}})
    assert train.says() == "trains 0 of 2"
    train.run()
    assert steps_taken == [1, 2, 1, 2]
    train.run()
    assert steps_taken == [1, 2, 1, 2]


def test_pictures_of_a_folder_count(node, base, steps_taken):
    folder = base / "input" / "counted"
    folder.mkdir()
    for color in ("red", "blue"):
        Image.new("RGB", (64, 64), color).save(folder / f"{color}.png")
    train = node(steps=1)
    del train.prompt["4"]["inputs"]["images"]
    train.prompt["4"]["inputs"]["folder"] = "counted"
    train.run()
    assert train.says() == "returns 1 of 1 finished"
    (folder / "blue.png").rename(folder / "red 2.png")
    Image.fromarray(np.full((64, 64, 3), 9, np.uint8)).save(folder / "red.png")
    assert train.says() == "trains 0 of 1"
    train.run()
    assert steps_taken == [1, 1]


def test_a_second_stage_depends_on_the_step_that_the_first_returns(node, steps_taken):
    train = node(steps=2, save_every=1)
    first = {**train.prompt[TRAIN_NODE], "inputs": {**train.prompt[TRAIN_NODE]["inputs"], "name": "first-stage"}}
    train.prompt["stage 1"] = first
    train.prompt["4"]["inputs"]["concept"] = ["stage 1", 0]
    train.prompt["subject 1"] = {**train.prompt["4"], "inputs": {**train.prompt["4"]["inputs"], "concept": ["2", 0]}}
    first["inputs"]["subject"] = ["subject 1", 0]
    assert train.says() == "trains 0 of 2"
    train.run()
    assert train.says() == "returns 2 of 2 finished"
    first["inputs"]["use_step"] = 1
    assert train.says() == "trains 0 of 2"
    train.run()
    assert train.says() == "returns 2 of 2 finished"
    first["inputs"]["use_step"] = 0
    assert train.says() == "returns 2 of 2 finished"
    train.run()
    assert steps_taken == [1, 2, 1, 2, 1, 2]


def test_a_graph_that_cannot_run_or_is_never_the_same_is_said(node):
    train = node()
    train.prompt["4"]["inputs"].pop("concept")
    assert told(train.prompt, TRAIN_NODE) == {"act": "incomplete", "node": "4", "input": "concept"}
    other = node()
    other.prompt["3"] = {"class_type": "PersonalizeManageSteps", "inputs": {  # says that it is never the same
        "run": "any", "operation": "list", "step_numbers": ""}}
    assert told(other.prompt, TRAIN_NODE) == {"act": "unknown", "node": "3"}
    assert told({"6": {}}, "6")["act"] == "refused"
    assert told({}, "6")["act"] == "unknown"


def test_a_typed_step_of_a_graph_that_has_not_run_fails(node):
    assert node(use_step=2).says() == "fails 2 of 3 chosen"


@pytest.mark.parametrize("each", CHANGES)
def test_the_name_of_a_graph_changes_with_the_run_s_key(each, base, execute):
    write_inputs(base)

    def name(**changed):
        prompt = whole_graph(each)
        prompt[each]["inputs"].update(changed)
        prompt[each]["inputs"] = {name: value for name, value in prompt[each]["inputs"].items() if value is not None}
        return Graph(prompt).signature("train")

    plain = name()
    for changed, value in CHANGES[each].items():
        same = isinstance(value, Same) and changed != "name"
        assert (name(**{changed: value.value if isinstance(value, Same) else value}) == plain) == same, changed


@pytest.mark.parametrize("kind, output, idle", [("animate", 0, True), ("rich animate", 0, False),
                                                ("animate", 3, False), (["8", 0], 0, False)])
def test_switches_of_rich_prompts_are_idle_only_beside_others_that_are_bundled(kind, output, idle, execute):
    def name(**switches):
        prompt = training_prompt("switched")
        prompt["7"] = {"class_type": "PersonalizePromptSet", "inputs": {"kind": kind, "file": "none", **switches}}
        prompt["8"] = {"class_type": "PrimitiveString", "inputs": {"value": "rich animate"}}
        prompt[TRAIN_NODE]["inputs"]["recipe"] = ["7", output]
        return Graph(prompt).signature(TRAIN_NODE)

    assert (name(viewpoint=True) == name(viewpoint=False)) == idle


def test_a_word_that_comes_by_a_link_is_read():
    prompt = training_prompt("linked", resume="continue")
    prompt["8"] = {"class_type": "PrimitiveInt", "inputs": {"value": 7}}
    prompt[TRAIN_NODE]["inputs"]["steps"] = ["8", 0]
    assert Graph(prompt).steps(TRAIN_NODE) == 7
    prompt["8"]["class_type"] = "SomethingElse"
    with pytest.raises(NotKnown):
        Graph(prompt).steps(TRAIN_NODE)
