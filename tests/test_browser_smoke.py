"""The real server and the real page: stock nodes on a tiny checkpoint, with the pack loaded."""
from __future__ import annotations

import pytest
from PIL import Image

from support.failures import PromptFailed
from support.prompts import picture_prompt


def test_server_loads_the_pack_and_draws(server):
    assert server.import_failures() == []
    run = server.run(picture_prompt("sd15.safetensors"))
    assert server.view(run.outputs["6"]["images"][0]).startswith(b"\x89PNG")
    assert [data["value"] for name, data in run.events if name == "progress"][-1] == 2


def test_server_failures_are_told_apart(server):
    prompt = picture_prompt("no such file.safetensors")
    with pytest.raises(PromptFailed, match="not in list") as refused:
        server.run(prompt)
    assert (refused.value.kind, refused.value.node_id) == ("validation", "1")
    running = server.start(picture_prompt("sd15.safetensors", steps=3000))
    running.wait_for("progress")
    server.interrupt()
    with pytest.raises(PromptFailed) as stopped:
        running.wait(30)
    assert stopped.value.kind == "interrupted"


def test_uploaded_file_lands_in_input(server, tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    answer = server.upload(tmp_path / "red.png", subfolder="my dog")
    assert (server.base / "input" / answer["subfolder"] / answer["name"]).read_bytes() == (
        tmp_path / "red.png"
    ).read_bytes()


def test_page_loads_runs_and_shows(any_ui, tmp_path):
    any_ui.js("prompt => window.app.loadApiJson(prompt, 'smoke')", picture_prompt("sd15.safetensors"))
    loaded = any_ui.load_workflow(any_ui.workflow())
    assert loaded.problems == {} and len(loaded.nodes) == 6
    run = any_ui.run()
    assert run.status == "success", run
    picture = Image.open(any_ui.screenshot(tmp_path / "page.png"))
    assert picture.size == (1600, 900)


def test_page_reports_what_is_wrong(ui):
    ui.js("prompt => window.app.loadApiJson(prompt, 'smoke')", picture_prompt("sd15.safetensors"))
    workflow = ui.workflow()
    sampler = next(node for node in workflow["nodes"] if node["type"] == "KSampler")
    sampler["widgets_values"][3] = 1e6
    next(node for node in workflow["nodes"] if node["type"] == "SaveImage")["type"] = "NoSuchNode"
    problems = ui.load_workflow(workflow).problems
    assert problems["missing nodes"] == ["NoSuchNode"]
    assert problems["bad values"] == [("KSampler", [["cfg", 1e6]])]
    assert "NoSuchNode" in problems["notice"]
