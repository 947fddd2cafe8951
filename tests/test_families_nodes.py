"""Lumina 2 and Z-Image through the nodes: a run is drawn, goes on, is returned, and stock nodes use its files."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.sample
import comfy.sd
import comfy.utils
import folder_paths
import pytest
import torch

from personalize.nodes.families.lumina import Lumina
from personalize.nodes.text.apply import vector_of
from support.training_page import training_prompt

ENCODERS = {"z_image": "qwen3_4b", "lumina2": "gemma2_2b"}
PROMPT = "a photo of <dog> in the snow"


@pytest.fixture
def drawn(monkeypatch) -> list[dict[str, Any]]:
    """What each preview was drawn from, and its latent."""
    found: list[dict[str, Any]] = []
    sample = comfy.sample.sample

    def watched(model, noise, steps, guidance, sampler, scheduler, positive, negative, latent, **more):
        made = sample(model, noise, steps, guidance, sampler, scheduler, positive, negative, latent, **more)
        found.append({"how": (sampler, scheduler, steps, guidance), "positive": positive, "latent": made.clone(),
                      "again": lambda model, positive, negative: sample(
                          model, noise, steps, guidance, sampler, scheduler, positive, negative, latent, **more)})
        return made

    monkeypatch.setattr(Lumina, "preview", replace(Lumina.preview, steps=2))
    monkeypatch.setattr(comfy.sample, "sample", watched)
    return found


def graph(kind: str, name: str, **changes) -> dict:
    """A word and a LoRA, drawn and saved every two steps; applied and encoded by stock nodes."""
    prompt = training_prompt(name, f"{kind}.safetensors", **{
        "steps": 4, "save_every": 2, "preview_every": 2, "preview_prompt": "a photo of {} in the snow",
        "resume": "continue", "trainable": ["8", 0], **changes})
    prompt["5"]["inputs"]["learning_rate"] = 0.05
    prompt["7"]["inputs"]["name"] = name
    prompt["8"] = {"class_type": "PersonalizeTrainAdapter", "inputs": {
        "algorithm": "LoRA", "rank": 2, "alpha": 2.0, "learning_rate": 0.01, "attention_only": True,
        "previous": ["5", 0]}}
    prompt["9"] = {"class_type": "PersonalizeApplyConcept", "inputs": {"clip": ["1", 1], "concept": ["6", 0]}}
    prompt["10"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["9", 0], "text": PROMPT}}
    prompt["11"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["9", 0], "text": ""}}
    return prompt


def vectors(run) -> torch.Tensor:
    (concept,) = run.values["concept"] if isinstance(run.values["concept"], tuple) else (run.values["concept"],)
    (rows,) = concept.vectors.values()
    return rows


GET = {"concept": ["6", 0], "weights": ["6", 2], "positive": ["10", 0], "negative": ["11", 0], "model": ["1", 0],
       "clip": ["1", 1], "text": ["7", 0]}


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_run_and_its_files(execute, embeddings, steps_taken, drawn, kind):
    first = execute(graph(kind, f"run-{kind}", steps=2), GET)
    longer = execute(graph(kind, f"run-{kind}"), GET)
    assert steps_taken == [1, 2, 3, 4]
    again, halfway = (execute(graph(kind, f"run-{kind}", **more), GET) for more in ({}, {"use_step": 2}))
    assert steps_taken == [1, 2, 3, 4]
    previews = [each["how"] for each in drawn]
    assert previews == [("euler", "simple", 2, 4.0)] * 3  # before the first step, after the second and the fourth
    last = drawn[-1]
    whole = execute(graph(kind, f"whole-{kind}", preview_every=0), GET)
    assert torch.equal(vectors(longer), vectors(whole)) and torch.equal(vectors(again), vectors(whole))
    assert torch.equal(vectors(first), vectors(halfway)) and not torch.equal(vectors(first), vectors(whole))
    assert all(torch.equal(value, whole.values["weights"][name]) for name, value in longer.values["weights"].items())

    # what Apply Concept makes is what the preview was drawn from; with the LoRA's file stock nodes draw the preview
    ((cond, options),), ((seen, seen_options),) = longer.values["positive"], last["positive"]
    assert torch.equal(cond, seen) and options.keys() <= seen_options.keys()
    assert all(torch.equal(torch.as_tensor(value), torch.as_tensor(seen_options[name]))
               for name, value in options.items() if value is not None)
    name = next(each for each in folder_paths.get_filename_list("loras") if f"run-{kind}" in each and "000004" in each)
    file = comfy.utils.load_torch_file(folder_paths.get_full_path("loras", name))
    model = longer.values["model"]
    with torch.inference_mode():
        trained, _ = comfy.sd.load_lora_for_models(model, None, file, 1.0, 0)
        ours, plain = (last["again"](each, longer.values["positive"], longer.values["negative"])
                       for each in (trained, model))
    torch.testing.assert_close(ours, last["latent"], atol=2e-3, rtol=2e-3)
    assert (plain - last["latent"]).abs().max() > 0.05

    # the embedding's file, in a prompt of stock nodes where ComfyUI reads embeddings for this encoder
    text = longer.values["text"]
    loaded = execute({"1": {"class_type": "PersonalizeLoadConcept", "inputs": {
        "embedding": text.removeprefix("embedding:"), "placeholder": "", "class_words": ""}}}, {"concept": ["1", 0]})
    assert torch.equal(vectors(loaded), vectors(longer).cpu()) and loaded.values["concept"][0].vectors.keys() == {
        ENCODERS[kind]}
    (tokens,) = longer.values["clip"].tokenize(f"a photo of {text} in the snow").values()
    found = [row for token, *_ in tokens[0] if (row := vector_of(token)) is not None]
    assert len(found) == (kind == "z_image") and all(torch.equal(row, vectors(longer)[0].cpu()) for row in found)
