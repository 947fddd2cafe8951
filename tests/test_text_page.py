"""Nodes whose result is text show it in the real page, with classic nodes and with Nodes 2.0."""
from __future__ import annotations

PROMPT = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}},
    "2": {"class_type": "PersonalizePromptTokens",
          "inputs": {"clip": ["1", 1], "prompt": "a photo of a dog", "neighbours": 2}},
}


def test_the_text_of_a_run_is_on_the_node_and_not_in_the_workflow(any_ui):
    any_ui.js("prompt => window.app.loadApiJson(prompt, 'text')", PROMPT)
    assert any_ui.load_workflow(any_ui.workflow()).problems == {}
    shown = any_ui.page.locator(".pz-text")
    assert shown.input_value() == ""
    run = any_ui.run()
    text = "\n".join(run.outputs["2"]["text"])
    assert "photo" in text and shown.input_value() == text
    sent = any_ui.prompt()["2"]["inputs"]
    assert sent == {"clip": ["1", 1], "prompt": "a photo of a dog", "neighbours": 2}
    saved = next(node for node in any_ui.workflow()["nodes"] if node["type"] == "PersonalizePromptTokens")
    assert saved["widgets_values"] == ["a photo of a dog", 2]
