"""A prompt without any word that its CLIP knows is said beneath its node, before Run, and where it is encoded."""
from __future__ import annotations

import pytest

from support.browser import open_page
from support.inprocess import provide_checkpoint

PROMPT, OTHER, CONCEPT, TRAIN, RECORD = "5", "6", "2", "20", "21"


def graph(prompt: object = "a photo of <my-dog>", negative: str = "blurry", **more: dict) -> dict:
    """A concept, applied, in a prompt; node 5 encodes it, 6 the negative prompt."""
    nodes = {
        "1": ("CheckpointLoaderSimple", {"ckpt_name": "sd15.safetensors"}),
        CONCEPT: ("PersonalizeConcept", {"placeholder": "<my-dog>", "class_words": "dog", "initial_words": "",
                                         "vector_count": 1, "embedding": "none"}),
        "3": ("PersonalizeApplyConcept", {"clip": ["1", 1], "concept": [CONCEPT, 0]}),
        "4": ("CLIPSetLastLayer", {"clip": ["3", 0], "stop_at_clip_layer": -1}),
        PROMPT: ("CLIPTextEncode", {"clip": ["4", 0], "text": prompt}),
        OTHER: ("CLIPTextEncode", {"clip": ["4", 0], "text": negative}),
        "7": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        "8": ("KSampler", {"model": ["1", 0], "positive": [PROMPT, 0], "negative": [OTHER, 0], "latent_image": ["7", 0],
                           "seed": 0, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal",
                           "denoise": 1.0}),
        "9": ("PreviewAny", {"source": ["8", 0]}), **more}
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}


@pytest.fixture(scope="module", params=["classic", "nodes2"])
def page(request, browser, server):
    provide_checkpoint("sd15", server.base)
    with open_page(browser, server, nodes2=request.param == "nodes2") as opened:
        yield opened
        assert opened.unexpected_messages() == []


class Marks:
    """A graph on the page and what is said beneath its nodes."""

    def __init__(self, page, prompt: dict):
        self.page = page
        page.js("prompt => { window.app.loadApiJson(prompt, 'marks') }", prompt)
        page.command("Comfy.Canvas.FitView")
        page.settle(1500)

    def said(self) -> list[str]:
        shown = self.page.page.locator(".pz-mark:visible .pz-mark-problem > span")
        return shown.all_inner_texts()

    def become(self, expected: list[str]) -> bool:
        """Whether this is said in the end; the page looks a moment after a change."""
        for _ in range(50):
            if sorted(self.said()) == sorted(expected):
                return True
            self.page.settle(200)
        return False

    def type(self, node: str, name: str, value: object) -> None:
        self.page.set_widget(node, name, value)

    def take(self, label: str) -> None:
        self.page.page.get_by_role("button", name=label, exact=True).click()

    def value(self, node: str, name: str) -> object:
        return next(each["widgets"][name] for each in self.page.graph() if each["id"] == node)


@pytest.mark.parametrize("written, label, expected", [
    ("a photo of <my-dgo> in snow", "Write <my-dog> for <my-dgo>", "a photo of <my-dog> in snow"),
    ("a photo of my-dog in snow", "Write <my-dog> for my-dog", "a photo of <my-dog> in snow"),
    ("a photo of a dog in snow", "Write <my-dog> for dog", "a photo of a <my-dog> in snow"),
    ("snow", "Add <my-dog>", "snow, <my-dog>")])
def test_the_right_word_is_put_in_by_one_click(page, written, label, expected):
    marks = Marks(page, graph(written))
    marks.take(label)
    assert marks.become([]) and marks.value(PROMPT, "text") == expected


def test_another_word_on_concept_is_said_at_every_prompt_with_the_former(page):
    marks = Marks(page, graph())
    assert marks.said() == []
    marks.type(CONCEPT, "placeholder", "<rex>")
    assert marks.become(["<my-dog> is no word of this graph; there is <rex>."])
    marks.take("Write <rex> for <my-dog>")
    assert marks.become([]) and marks.value(PROMPT, "text") == "a photo of <rex>"


ENCODE = ("PersonalizeEncodeWithSpans", {"clip": ["1", 1], "concept": [CONCEPT, 0], "prompt": "a beach", "words": ""})


def test_nothing_is_said_without_cause(page):
    """Of weighted words, other capitals, files, negative and empty prompts, and of text that other nodes make."""
    linked = {"10": ("StringConcatenate", {"string_a": "a", "string_b": "b", "delimiter": ""})}
    quiet = [graph("(<MY-DOG>:1.2), <lora:rex:1>", "ugly <thing"), graph("embedding:my-dog on a beach"), graph(""),
             graph(["10", 0], **linked), graph("a photo", **{"3": ("CLIPSetLastLayer", {
                 "clip": ["1", 1], "stop_at_clip_layer": -1})})]
    assert [Marks(page, each).said() for each in quiet] == [[]] * len(quiet)


def test_the_packs_own_texts_are_read_too(page):
    record = ("PersonalizeRecordAttention", {"model": ["1", 0], "words": "<my-dgo>, snow", "layers": "all",
                                             "layer_numbers": "", "keep": "every step", "start_percent": 0.0,
                                             "end_percent": 1.0, "prompt": ""})
    encode = ("PersonalizeEncodeWithSpans", {"clip": ["1", 1], "concept": [CONCEPT, 0], "prompt": "a beach",
                                             "words": ""})
    again = ("KSampler", {**graph()["8"]["inputs"], "model": [RECORD, 0], "positive": ["22", 0]})
    prompts = ("PersonalizeTrainingPrompts", {"prompts": "a photo of a {}\na drawing of <my-dog>",
                                              "use_captions": True})
    marks = Marks(page, graph(**{RECORD: record, "22": encode, "23": again, "24": prompts}))
    assert marks.become([
        "<my-dgo> is no word of this graph; there is <my-dog>.",
        "Line 2 has 0 {}; each prompt needs one, where the word goes.",
        "This prompt does not hold <my-dog>, so it draws without it."])
    marks.take("Write {} for <my-dog>")
    assert marks.value("24", "prompts") == "a photo of a {}\na drawing of {}"


def test_a_word_that_a_node_looks_for_is_missed_at_the_prompt(page):
    look = ("PersonalizeAttentionOfLatent", {
        "model": ["1", 0], "conditioning": ["22", 0], "latent": ["7", 0], "words": [CONCEPT, 2], "timesteps": "200",
        "seed": 0, "layers": "all", "layer_numbers": "", "keep": "every step", "prompt": ""})
    shown = ("PreviewAny", {"source": [RECORD, 0]})
    marks = Marks(page, graph(**{RECORD: look, "22": ("CLIPTextEncode", {"clip": ["1", 1], "text": "a hotdog in snow"}),
                                 "23": shown}))
    assert marks.become(["This prompt does not hold dog, which Attention of Latent looks for in it."])
    marks.take("Add dog")
    assert marks.value("22", "text") == "a hotdog in snow, dog" and marks.become([])
    marks.type(CONCEPT, "class_words", "cat")
    assert marks.become(["This prompt does not hold cat, which Attention of Latent looks for in it."])


def test_within_a_subgraph_it_is_said_at_the_subgraph(page):
    marks = Marks(page, graph("a photo of a cat"))
    page.js("""() => { const {graph} = window.app, ids = [3, 4, 5];
        graph.convertToSubgraph(new Set(ids.map(id => graph.getNodeById(id)))); }""")
    assert marks.become(["This prompt does not hold <my-dog>, so it draws without it."])
    marks.take("Add <my-dog>")
    assert marks.become([])


@pytest.mark.parametrize("prompt, negative, told", [
    ("a photo of a dog", "", True), ("a photo of <my-dog>", "blurry", False), ("", "blurry", False)])
def test_without_the_page_it_is_said_when_the_prompt_is_encoded(server, prompt, negative, told):
    provide_checkpoint("sd15", server.base)
    before = len(server.log())
    server.run(graph(prompt, negative))
    said = [line for line in server.log()[before:].splitlines() if "does not hold" in line]
    assert len(said) == told
    assert all("does not hold <my-dog>, so it draws without" in line for line in said)


def test_settings_that_cannot_act_are_said_at_their_node(page):
    swap = ("PersonalizeRecordAttention", {"model": ["1", 0], "words": "", "layers": "all", "layer_numbers": "",
                                           "keep": "every step", "start_percent": 0.6, "end_percent": 0.4,
                                           "prompt": ""})
    marks = Marks(page, graph(**{RECORD: swap}))
    assert marks.become(["start_percent 0.6 is not before end_percent 0.4, so that this node acts in no step."])
    marks.type(RECORD, "end_percent", 0.9)
    assert marks.become([])
