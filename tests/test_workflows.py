"""Train's inputs, and every workflow ever shipped: opened and run in the real page, and run through the API."""
from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from authoring.catalog import ALL_GRAPHS, template
from authoring.graph import model_of
from authoring.graphs import CHECKPOINT
from support.paths import PACK, TESTS
from support.templates import ALL_SHIPPED, SHIPPED, provide_files, quick
from support.workflows import to_prompt, with_defaults, with_values

MAIN = template("train_embedding_core")
SAVED = TESTS / "saved_workflows"
OF_TODAY = [path.read_bytes() for path in SHIPPED]
EVER_SHIPPED = [*SHIPPED, *(path for path in sorted(SAVED.glob("*/*.json")) if path.read_bytes() not in OF_TODAY)]


def name_of(path: Path) -> str:
    """Test id: file name, with the version for a frozen one."""
    return path.stem if path.parent.name == "workflows" else f"{path.parent.name}-{path.stem}"


@pytest.fixture
def template_server(server):
    """The server with small files under the names that the workflows use."""
    provide_files(server.base, "sd15.safetensors", {"clip_l": 32})
    return server


@pytest.mark.parametrize("path", [*ALL_SHIPPED, *(PACK / "subgraphs").glob("*.json")], ids=name_of)
def test_nothing_is_null_but_missing_wires(path):
    """Newer pages read what older ones have written as null, and fail."""
    found = set()

    def look(key, part):
        if part is None and key not in ("link", "links"):
            found.add(key)
        for name, each in part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ():
            look(name if isinstance(part, dict) else key, each)

    look("", json.loads(path.read_text(encoding="utf-8")))
    assert found == set()


def test_every_description_has_its_workflow_and_a_thumbnail():
    assert {path.stem for path in SHIPPED} == {graph.title for graph in ALL_GRAPHS}
    assert [path.stem for path in SHIPPED if not path.with_suffix(".jpg").is_file()] == []


@pytest.mark.parametrize("graph", ALL_GRAPHS, ids=lambda graph: graph.name)
def test_notes_are_those_of_the_description(graph):
    nodes = json.loads(graph.path.read_text(encoding="utf-8"))["nodes"]
    shown = [node["widgets_values"] for node in nodes if node["type"] == "MarkdownNote"]
    assert shown == [[graph.note.text]]


@pytest.mark.parametrize("path", SHIPPED, ids=name_of)
def test_the_page_offers_the_checkpoint_where_comfyui_itself_does(path):
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    offered = [node["properties"]["models"] for node in nodes if node["type"] == "CheckpointLoaderSimple"]
    of_folder = [node for node in nodes if node["type"] == "DiffusersLoader"]  # which no template offers
    assert offered == [[model_of(CHECKPOINT)]] * len(offered) and len(offered + of_folder) == 1
    assert all(each["url"].startswith("https://") and each["directory"] == "checkpoints" for each, in offered)


@pytest.mark.parametrize("path", EVER_SHIPPED, ids=name_of)
def test_workflow_opens_in_the_page_as_it_was_saved(path, template_server, ui):
    """One of an earlier version may lack widgets that came later, and gets their defaults."""
    document = json.loads(path.read_text(encoding="utf-8"))
    problems = ui.load_workflow(path).problems
    assert not problems or path not in SHIPPED and problems.keys() == {"values of later widgets"}
    sent = {node_id: {key: node[key] for key in ("class_type", "inputs")} for node_id, node in ui.prompt().items()}
    definitions = template_server.get("/object_info")
    assert with_defaults(to_prompt(document, definitions), definitions) == sent


@pytest.mark.parametrize("path", EVER_SHIPPED, ids=name_of)
def test_workflow_runs_through_the_api(path, template_server):
    definitions = template_server.get("/object_info")
    document = quick(path, definitions)
    run = template_server.run(to_prompt(document, definitions))
    pictures = [file for output in run.outputs.values() for file in output.get("images", [])]
    assert pictures and all(template_server.view(file).startswith(b"\x89PNG") for file in pictures)


@pytest.mark.parametrize("path", [path for path in SHIPPED if "from one picture" in path.stem], ids=name_of)
def test_visual_branch_is_not_drawn_after_the_negative_prompt(path, template_server):
    prompt = to_prompt(json.loads(path.read_text(encoding="utf-8")), template_server.get("/object_info"))
    branch, = (node["inputs"]["positive"][0] for node in prompt.values()
               if node["class_type"] == "PersonalizeSelfAttentionSwap")
    negatives = {node["inputs"]["negative"][0] for node in prompt.values() if node["class_type"] == "KSampler"}
    assert negatives and branch not in negatives


@pytest.mark.parametrize("path", SHIPPED, ids=name_of)
def test_workflow_runs_in_the_page(path, template_server, ui):
    run_in_page(path, template_server, ui)


def test_main_workflow_runs_in_nodes_2(template_server, browser):
    from support.browser import open_page

    with open_page(browser, template_server, nodes2=True) as ui:
        run_in_page(MAIN, template_server, ui)
        assert ui.unexpected_messages() == []


def run_in_page(path: Path, server, ui) -> None:
    """Open, press Run, and see pictures."""
    document = quick(path, server.get("/object_info"))
    assert ui.load_workflow(document).problems == {}
    run = ui.run()
    assert (run.status, run.overlay) == ("success", ""), run
    assert any(output.get("images") for output in run.outputs.values())


def test_a_prompt_without_the_word_is_told_at_the_sampler(template_server, ui):
    path = template("vico_apply")
    definitions = template_server.get("/object_info")
    document = with_values(quick(path, definitions), definitions, {"PersonalizeEncodeWithSpans": {"prompt": "a beach"}})
    assert ui.load_workflow(document).problems == {}
    assert ui.run().status == "success"
    ui.page.get_by_text("Apply ViCo: the prompt does not hold <example-toy>, so the object mask is taken").wait_for()


def report_of(run) -> dict:
    """What the Train node shows at its end."""
    return next(shown["personalize_training"][0] for shown in run.outputs.values() if "personalize_training" in shown)


def test_run_of_the_main_workflow_leaves_what_the_readme_says(template_server):
    definitions = template_server.get("/object_info")
    document = quick(MAIN, definitions)
    other_seed = with_values(document, definitions, {"PersonalizeTrain": {"seed": 7}})
    report = report_of(template_server.run(to_prompt(other_seed, definitions)))
    assert [record["step"] for record in report["history"]] == [1, 2, 3]
    assert {"diffusion", "context embedding", "context attention"} <= set(report["history"][0]["parts"])
    assert [saved["step"] for saved in report["saved"]] == [2, 3]
    assert [preview["step"] for preview in report["previews"]] == [0, 3]
    assert all(Path(file).is_file() for saved in report["saved"] for file in saved["files"])
    assert re.fullmatch(r"embedding:example-toy-[0-9a-f]{8}/example-toy-000003", report["saved"][-1]["embeddings"][0])


def default_of(kind: str | list, options: dict | None = None) -> object:
    """The value a new node has in a widget."""
    choices = kind if isinstance(kind, list) else (options or {}).get("options", [None])
    return (options or {}).get("default", choices[0])


PATCHES = ("FreeU_V2", "PerturbedAttentionGuidance", "SelfAttentionGuidance", "HyperTile", "TomePatchModel",
           "RescaleCFG", "PatchModelAddDownscale", "DifferentialDiffusion", "ModelSamplingDiscrete")


@pytest.mark.parametrize("node", PATCHES)
def test_main_workflow_works_with_a_model_that_another_node_has_patched(node, template_server):
    """Trains on the patched model and draws with it: README, "With other nodes"."""
    definitions = template_server.get("/object_info")
    document = quick(MAIN, definitions)
    larger = {"PersonalizeSubject": {"size": 128}, "EmptyLatentImage": {"width": 128, "height": 128},  # some halve it
              "PersonalizeTrain": {"preview_every": 0}}
    prompt = to_prompt(with_values(document, definitions, larger), definitions)
    inputs = definitions[node]["input"]["required"]
    widgets = {name: default_of(*declared) for name, declared in inputs.items() if name != "model"}
    for entry in prompt.values():
        if entry["inputs"].get("model") == ["1", 0]:
            entry["inputs"]["model"] = ["patch", 0]
    prompt["patch"] = {"class_type": node, "inputs": {"model": ["1", 0], **widgets}}
    assert [record["step"] for record in report_of(template_server.run(prompt))["history"]] == [1, 2, 3]


# ---------------------------------------------------------------------------------------------- the frozen schema
def described(schema) -> dict:
    """What saved workflows depend on: order, types and defaults of inputs, order and types of outputs."""
    inputs = []
    for given in schema.inputs:
        default, options = getattr(given, "default", None), list(getattr(given, "options", None) or [])
        inputs.append({"id": given.id, "type": given.get_io_type(), "optional": given.optional,
                       "default": options[0] if options and default is None else default, "options": options,
                       "second widget": bool(getattr(given, "control_after_generate", None))})
    return {"inputs": inputs, "outputs": [output.get_io_type() for output in schema.outputs]}


def test_train_keeps_the_inputs_that_saved_workflows_rely_on():
    from personalize.nodes.training.nodes_train import PersonalizeTrain

    now, frozen = described(PersonalizeTrain.GET_SCHEMA()), json.loads((SAVED / "train_schema.json").read_text())
    for current, saved in zip(now["inputs"], frozen["inputs"]):
        assert set(saved.pop("options")) <= set(current.pop("options")), f"{saved['id']} lost an option"
    assert now == frozen
