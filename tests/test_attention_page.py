"""Looking inside in the real page, with classic nodes and with Nodes 2.0."""
from __future__ import annotations

import colorsys
import json

from PIL import Image

from authoring.catalog import template
from support.workflows import with_values

WORKFLOW = template("look_inside")
QUICK = {"CheckpointLoaderSimple": {"ckpt_name": "sd15.safetensors"}, "KSampler": {"steps": 3},
         "EmptyLatentImage": {"width": 128, "height": 128}}
SHOW, MASK, SHOW_LATENT = "8", "9", "11"


def bright_hues(picture: Image.Image) -> set[int]:
    """Tenths of the colour circle of which the picture holds strong colours."""
    pixels = picture.convert("RGB").resize((120, 120)).getdata()
    colours = (colorsys.rgb_to_hsv(*(channel / 255 for channel in pixel)) for pixel in pixels)
    return {int(hue * 10) for hue, saturation, value in colours if saturation > 0.5 and value > 0.25}


def test_heat_maps_and_masks_are_seen(any_ui, tmp_path):
    document = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    document = with_values(document, any_ui.server.get("/object_info"), QUICK)
    assert any_ui.load_workflow(document).problems == {}
    before = bright_hues(Image.open(any_ui.screenshot(tmp_path / "before.png", SHOW)))
    run = any_ui.run()
    assert (run.status, run.overlay) == ("success", ""), run
    assert {node: len(run.outputs[node]["images"]) for node in (SHOW, MASK, SHOW_LATENT)} == {
        SHOW: 1, MASK: 1, SHOW_LATENT: 1}
    after = bright_hues(Image.open(any_ui.screenshot(tmp_path / "after.png", SHOW)))
    assert len(after - before) >= 2, "no colours of a heat map on the node"
    sampled = any_ui.js("() => window.testWatch.events.filter(([name]) => name === 'progress').length")
    any_ui.set_widget(SHOW, "colours", "jet")
    again = any_ui.run()
    assert again.status == "success" and again.outputs[SHOW]["images"] != run.outputs[SHOW]["images"]
    assert any_ui.js("() => window.testWatch.events.filter(([name]) => name === 'progress').length") == sampled


def test_what_is_wrong_is_said_on_the_node(ui):
    """The sampler does not use the MODEL of Record Attention."""
    document = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    document = with_values(document, ui.server.get("/object_info"), {**QUICK, "PersonalizeRecordAttention": {
        "words": "beach"}})
    ui.load_workflow(document)
    ui.js("""() => { const graph = window.app.graph, sampler = graph.getNodeById(6);
        graph.getNodeById(1).connect(0, sampler, sampler.findInputSlot('model')) }""")
    run = ui.run()
    assert run.status == "error" and run.error["node_id"] in (SHOW, MASK)
    assert "record of Record Attention is empty" in run.error["exception_message"]
    assert "Connect its MODEL to the sampler" in run.error["exception_message"]
