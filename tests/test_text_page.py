"""Concepts in the real page: a new file is usable at once, listed after a refresh; the help shows placeholders."""
from __future__ import annotations

import safetensors.torch
import torch

CHECKPOINT = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}}
OPTIONS = """([id, name]) => window.app.graph.getNodeById(id).widgets.find(w => w.name === name).options.values"""


def prompt(name: str) -> dict:
    return {"1": CHECKPOINT,
            "2": {"class_type": "PersonalizeLoadConcept", "inputs": {
                "embedding": name, "placeholder": "", "class_words": ""}},
            "3": {"class_type": "PersonalizeApplyConcept", "inputs": {"clip": ["1", 1], "concept": ["2", 0]}},
            "4": {"class_type": "PersonalizePromptTokens", "inputs": {
                "clip": ["3", 0], "text": "a <page-dog> in {red|red} snow", "neighbours": 3}},
            "5": {"class_type": "PersonalizeSaveConcept", "inputs": {"concept": ["2", 0], "name": "page-copy"}},
            "6": {"class_type": "PersonalizePromptSet", "inputs": {
                "subject": "universal", "background": True, "action": True, "outfit": True, "style": True,
                "colour": True, "file": "none", "own_prompts": "a {} of my own"}},
            "7": {"class_type": "PreviewAny", "inputs": {"source": ["6", 1]}},
            "8": {"class_type": "PersonalizeManageSteps", "inputs": {"run": "", "action": "list", "steps": ""}}}


def test_a_file_added_while_the_page_is_open(any_ui):
    folder = any_ui.server.base / "models" / "embeddings"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("page-*"):
        old.unlink()
    safetensors.torch.save_file({"clip_l": torch.randn(2, 32)}, folder / "page-dog.safetensors")
    graph = prompt("page-dog.safetensors")
    del graph["8"]
    any_ui.js("async graph => { await window.app.loadApiJson(graph, 'text') }", graph)
    done = any_ui.run()
    assert done.status == "success", done
    assert "<page-dog>: 2, 3" in done.outputs["4"]["text"][0] and "red" in done.outputs["4"]["text"][0]
    assert done.outputs["5"]["text"][0].startswith("embedding:page-copy")
    assert any("a {} of my own" in text for text in done.outputs["7"]["text"])
    any_ui.js("async () => { await window.app.refreshComboInNodes() }")
    listed = any_ui.js(OPTIONS, ["2", "embedding"])
    assert {"page-dog.safetensors", "page-copy.safetensors"} <= set(listed)


def test_every_text_node_stands_on_the_canvas_with_its_help(ui):
    graph = prompt("page-dog.safetensors")
    ui.js("async graph => { await window.app.loadApiJson(graph, 'text') }", graph)
    ui.settle(500)
    assert not [node for node in ui.graph() if node["missing"]]
    shown = ui.node_help("3")
    assert "(<my-dog>:1.2)" in shown and "Apply Concept" in shown
