"""ViCo's nodes in a graph: from a file to a picture and its masks, and what they refuse."""
from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from personalize.nodes.papers.vico.files import FORMAT
from personalize.nodes.papers.vico.nodes_apply import PersonalizeLoadViCo
from personalize.nodes.visual_prompts.nodes_blip_diffusion import PersonalizeLoadBlipDiffusion
from personalize.nodes.visual_prompts.nodes_elite import PersonalizeLoadElite
from personalize.nodes.visual_prompts.nodes_ip_adapter import PersonalizeLoadIPAdapter
from support.failures import PromptFailed
from tiny.vico import TINY_SD15, official_tensors

ABOUT = {"format": FORMAT, "variant": "paper", "words": '["<my-dog>", "<my-toy>"]', "size": "64", "text_width": "32"}
PROMPT = "a photo of a <my-dog> at night"


@pytest.fixture(scope="module")
def session(execute, tiny_checkpoints, base):
    folder = base / "models" / "vico"
    folder.mkdir(exist_ok=True)
    tensors = official_tensors(TINY_SD15)
    save_file(tensors, folder / "tiny.safetensors", ABOUT)
    torch.save(tensors, folder / "cross_attention-399.pt")
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(base / "input" / "vico-dog.png")
    return execute.session()


def graph(steps: int = 2, **apply) -> dict:
    apply = {"model": ["1", 0], "vico": ["4", 0], "vae": ["1", 2], "image": ["3", 0], "words": "", "strength": 1.0,
             "start_percent": 0.0, "end_percent": 1.0, "object_mask": "as trained", "halves": "both", "reuse_steps": 1,
             "size": 0, "fit": "squash", **apply}
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}},
        "2": {"class_type": "PersonalizeConcept", "inputs": {
            "placeholder": "<my-dog>", "class_words": "dog", "initial_words": "cat", "vector_count": 1,
            "embedding": "none"}},
        "3": {"class_type": "LoadImage", "inputs": {"image": "vico-dog.png"}},
        "4": {"class_type": "PersonalizeLoadViCo", "inputs": {"file": "tiny.safetensors"}},
        "5": {"class_type": "PersonalizeApplyViCo", "inputs": apply},
        "6": {"class_type": "PersonalizeEncodeWithSpans", "inputs": {
            "clip": ["1", 1], "prompt": PROMPT, "words": "", "concept": ["2", 0]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
        "8": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 2}},
        "9": {"class_type": "KSampler", "inputs": {
            "model": ["5", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["8", 0], "seed": 1,
            "steps": steps, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}}}


def shown() -> dict:
    """Nodes that read the record."""
    return {
        "10": {"class_type": "PersonalizeShowMasks", "inputs": {
            "record": ["5", 1], "image": ["3", 0], "latent": ["9", 0], "show": "each step", "opacity": 0.6}},
        "11": {"class_type": "PersonalizeShowAttention", "inputs": {
            "record": ["5", 1], "image": ["3", 0], "latent": ["9", 0], "show": "each step", "scale": "each map",
            "colours": "viridis", "opacity": 0.6, "longest_side": 0}}}


def latent(session, prompt: dict) -> torch.Tensor:
    return session(prompt, {"latent": ["9", 0]}).values["latent"]["samples"]


def test_from_a_file_to_a_picture_and_its_masks(session):
    prompt = graph(steps=3) | shown()
    values = session(prompt, {"latent": ["9", 0], "masks": ["10", 0], "heat": ["11", 0]}).values
    assert values["latent"]["samples"].shape == (2, 4, 8, 8)
    assert values["masks"].shape == (3, 40, 60) and 0 < values["masks"].mean() < 1
    assert values["heat"].shape == (3, 40, 60, 3)
    off = graph(steps=3, strength=0.0)
    without = graph(steps=3)
    without["9"]["inputs"]["model"] = ["1", 0]
    assert torch.equal(latent(session, off), latent(session, without))
    assert not torch.equal(latent(session, off), values["latent"]["samples"])


def test_file_by_a_link_is_read_once(session):
    """ComfyUI asks for the fingerprint before the link has a value, and gives None."""
    prompt = graph()
    prompt["4"]["inputs"]["file"] = ["12", 0]
    prompt["12"] = {"class_type": "ComfySwitchNode", "inputs": {
        "switch": True, "on_false": ["13", 0], "on_true": ["13", 0]}}
    prompt["13"] = {"class_type": "PrimitiveString", "inputs": {"value": "tiny.safetensors"}}
    first, second = (session(copy.deepcopy(prompt), {"latent": ["9", 0]}) for _ in range(2))
    assert torch.equal(first.values["latent"]["samples"], latent(session, graph()))
    assert {"4", "5", "9"} <= set(second.cached)


@pytest.mark.parametrize("node, names", [
    (PersonalizeLoadViCo, ["file"]), (PersonalizeLoadIPAdapter, ["file"]), (PersonalizeLoadBlipDiffusion, ["folder"]),
    (PersonalizeLoadElite, ["global_mapper", "local_mapper"])])
def test_loaders_have_a_fingerprint_before_links_have_values(node, names):
    """Text, which equals itself: a raised error would become NaN."""
    assert isinstance(node.fingerprint_inputs(**dict.fromkeys(names)), str)


def test_a_file_says_how_it_is_used(session):
    as_trained = latent(session, graph())
    assert torch.equal(as_trained, latent(session, graph(object_mask="Eq. 5", words="<my-dog>", size=64)))
    assert not torch.equal(as_trained, latent(session, graph(object_mask="as released")))
    assert not torch.equal(as_trained, latent(session, graph(fit="crop")))


def test_second_object_and_masks(session):
    prompt = graph(image_2=["3", 0], words_2="night")
    two = latent(session, prompt)
    assert not torch.equal(two, latent(session, graph()))
    prompt["12"] = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 60, "height": 40}}
    prompt["5"]["inputs"] |= {"mask": ["12", 0], "mask_2": ["12", 0]}
    assert torch.allclose(latent(session, prompt), latent(session, {
        **prompt, "5": graph(image_2=["3", 0], words_2="night", object_mask="none")["5"]}), atol=1e-4)


def test_the_authors_file_is_for_the_authors_models(session):
    prompt = graph()
    prompt["4"]["inputs"]["file"] = "cross_attention-399.pt"
    with pytest.raises(PromptFailed, match="cross_attention-399.pt was trained on another kind of model: with text of "
                                           "width 768"):
        latent(session, prompt)


def test_prompt_of_stock_nodes_with_clip_and_prompt(session):
    prompt = graph(clip=["12", 0], prompt=PROMPT)
    prompt["12"] = {"class_type": "PersonalizeApplyConcept", "inputs": {"clip": ["1", 1], "concept": ["2", 0]}}
    prompt["6"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["12", 0], "text": PROMPT}}
    assert torch.equal(latent(session, prompt), latent(session, graph()))


def changed(node: str, **inputs) -> dict:
    prompt = graph()
    prompt[node]["inputs"] |= inputs
    return prompt


MASK = {"12": {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 10, "height": 40}}}
TWICE = {"12": changed("5", model=["5", 0])["5"], "9": changed("9", model=["12", 0])["9"]}
FOREIGN = {"6": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": PROMPT}}}
NO_IMAGE = {"5": {**graph()["5"], "inputs": {k: v for k, v in graph()["5"]["inputs"].items() if k != "image"}}}


@pytest.mark.parametrize(
    "prompt, message",
    [
        (changed("5", start_percent=0.5, end_percent=0.5), r"start_percent \(0.5\) is not before end_percent \(0.5\)"),
        (changed("5", prompt="a dog"), "prompt is filled in but clip is not connected; connect it, or clear prompt"),
        (
            changed("5", clip=["1", 1]),
            "clip is connected but prompt is empty; write the text of the conditioning there once more",
        ),
        (
            changed("4", file="gone.safetensors"),
            "There is no file 'gone.safetensors' in .*vico; choose one from the list",
        ),
        (changed("4", file="none"), "file is none and no concept is connected"),
        (graph() | TWICE, "This MODEL already reads a reference; use one Apply ViCo"),
        (changed("5", mask=["12", 0]) | MASK, "The mask of picture 1 is 10×40 but the picture is 60×40"),
        (graph() | FOREIGN, "A positive conditioning does not say where the subject's word is"),
        (graph() | NO_IMAGE, "Required input is missing"),
    ],
    ids=["window", "prompt", "clip", "file", "none", "twice", "mask", "foreign", "no reference"],
)
def test_what_cannot_work_is_said(session, prompt, message):
    with pytest.raises(PromptFailed, match=message):
        latent(session, prompt)
