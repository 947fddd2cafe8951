"""What people type into ComfyUI's node search leads to the node that they mean."""
from __future__ import annotations

import pytest

from support.browser import open_page

FIRST = 5
WANTED = {  # what is typed -> nodes of which one is meant
    "character": "Concept, Subject, Train", "consistent character": "Self-Attention Swap, Apply ViCo",
    "load images folder": "Subject", "pictures": "Subject", "photos": "Subject", "training images": "Subject",
    "style": "Train, Subject", "person": "Subject, Train", "caption": "Subject, Training Prompts",
    "captions": "Subject, Training Prompts", "subject": "Subject", "concept": "Concept", "trigger word": "Concept",
    "train": "Train", "dreambooth": "Train U-Net, Train", "textual inversion": "Train Embedding, Train",
    "finetune": "Train U-Net, Train", "fine tune": "Train U-Net, Train", "train lora": "Train Adapter (LoRA)",
    "lora training": "Train Adapter (LoRA), Train", "kohya": "Train",
    "embedding": "Train Embedding", "load embedding": "Load Concept", "save embedding": "Save Concept",
    "regularization": "Prior Pictures, CoRe Loss", "class images": "Prior Pictures", "overfit": "CoRe Loss",
    "loss": "Diffusion Loss, CoRe Loss", "custom diffusion": "Train Key/Value", "masked training": "Diffusion Loss",
    "subject mask": "Subject Mask",
    "segment": "Subject Mask", "background removal": "Subject Mask", "attention": "Show Attention, Attention of Latent",
    "heatmap": "Show Attention", "heat map": "Show Attention", "daam": "Show Attention, Record Attention",
    "token": "Prompt Tokens", "prompts": "Prompt Set, Training Prompts", "ip adapter": "Load IP-Adapter",
    "ipadapter": "Load IP-Adapter", "reference image": "Load IP-Adapter", "clean up": "Manage Steps",
}
AMONG_COMFYUIS_OWN = 20  # nodes of ComfyUI that have the word in their names come before all others
WANTED_AMONG_THEM = {
    "lora": "Train Adapter (LoRA)", "lokr": "Train Adapter (LoRA)", "mask": "Subject Mask", "dataset": "Subject",
    "face": "Subject, Train", "save": "Save Concept", "checkpoint": "Manage Steps, Train U-Net", "unet": "Train U-Net",
    "folder": "Subject",
}
RESULTS = "() => [...document.querySelectorAll('[role=option]')].map(row => row.innerText.split('\\n')[0])"


@pytest.fixture(scope="module")
def search(browser, server):
    """Call with what is typed for the names that ComfyUI's search shows, best first."""
    with open_page(browser, server) as ui:
        ui.js("() => window.app.graph.clear()")
        ui.open_node_search()
        box = ui.page.evaluate_handle("() => document.activeElement").as_element()

        def typed(words: str) -> list[str]:
            box.fill(words)
            ui.settle(50)
            return ui.js(RESULTS)

        yield typed


def test_searches_find_the_node_that_is_meant(search):
    lost = {}
    for wanted, first in ((WANTED, FIRST), (WANTED_AMONG_THEM, AMONG_COMFYUIS_OWN)):
        for words, names in wanted.items():
            found = search(words)[:first]
            if not set(names.split(", ")) & set(found):
                lost[words] = found
    assert lost == {}

