"""What is said of a training before it runs: memory, time, values that fit, and settings that cannot act."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from personalize.nodes.papers.context.terms import MaskedLanguageLoss
from personalize.nodes.papers.detex.parts import AttributesPart
from personalize.nodes.papers.detex.recipe import AttributeRecipe
from personalize.nodes.papers.detex.terms import AttributeAttentionLoss
from personalize.nodes.papers.vico.parts import ImageAttentionPart
from personalize.nodes.training import estimate, nodes_train, told_plan
from personalize.nodes.training.batch import Prior
from personalize.nodes.training.diffusion import DiffusionLoss
from personalize.nodes.training.estimate import counts, flops_of, texts_of_layers
from personalize.nodes.training.foreseen import Foreseen, Graph
from personalize.nodes.training.idle import Setting, Shown, idle_settings
from personalize.nodes.training.job import Outcome
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.parts.per_layer import PerLayerPart
from personalize.nodes.training.parts.weights import AdapterPart
from personalize.nodes.training.plan import Settings
from personalize.nodes.training.recipe import TemplateRecipe
from support.browser import open_page
from support.inprocess import provide_checkpoint
from support.training_graph import graph, with_detex, write_inputs
from support.training_page import TRAIN_NODE, training_prompt
from support.trainings import CORE, in_place_of_a_step, subject, train
from tiny.models import WIDTH_L

FINE = Setting(Settings(24, 2), (EmbeddingPart(),), (DiffusionLoss(),), TemplateRecipe(), (Shown("<my-dog>", 4, 0, 0),))
LORA = AdapterPart("LoRA", 4, 0.0, True, 1e-4)


@pytest.mark.smoke
@pytest.mark.parametrize("changes, told", [
    ({}, []),
    ({"parts": (EmbeddingPart(rescaled=(121, 180)),)}, ["Rescaling on Train Embedding would begin at step 121 of 24"]),
    ({"parts": (EmbeddingPart(rescaled=(12, 180)),)}, ["Rescaling on Train Embedding would last until step 180"]),
    ({"parts": (EmbeddingPart(lr=0.0),)}, ["The learning rate of what is trained as embedding is 0"]),
    ({"parts": (LORA,)}, ["alpha of Train Adapter is 0"]),
    ({"terms": (DiffusionLoss(window=(30, 10**9)),)}, ["The loss 'diffusion' would begin at step 30 of 24"]),
    ({"terms": (DiffusionLoss(window=(9, 3)),)}, ["The loss 'diffusion' would end at step 3, before it begins"]),
    ({"terms": (DiffusionLoss(0.0),)}, ["The weight of the loss 'diffusion' is 0", "No loss has a weight"]),
    ({"terms": (DiffusionLoss(background=0.5),)}, ["background_weight of Diffusion Loss needs masks"]),
    ({"settings": Settings(24, 2, warmup_steps=24)}, ["warmup_steps is 24 of 24 steps"]),
    ({"settings": Settings(24, 2, micro_batch=4)}, ["micro_batch 4 is more than batch_size 2"]),
    ({"settings": Settings(24, 2, optimizer="Rprop")}, ["Rprop takes no weight_decay"]),
    ({"save_every": 50}, ["save_every 50 is more than the 24 steps"]),
    ({"preview_every": 50}, ["preview_every 50 is more than the 24 steps"]),
    ({"preview_every": 12, "preview_prompt": "a dog"}, ["preview_prompt holds neither {} nor <my-dog>"]),
    ({"subjects": (Shown("<my-dog>", 4, 0, 4),)}, ["The masks of <my-dog> are not used"]),
    ({"subjects": (Shown("<my-dog>", 4, 0, 4),), "parts": (ImageAttentionPart(given_masks=True),)}, []),
    ({"subjects": (Shown("<my-dog>", 4, 0, 0),), "recipe": AttributeRecipe()},
     ["4 of 4 pictures of <my-dog> have no mask: their background is never left out"]),
    ({"subjects": (Shown("<my-dog>", 4, 0, 3),), "recipe": AttributeRecipe()},
     ["1 of 4 pictures of <my-dog> have no mask: their background is never left out"]),
    ({"subjects": (Shown("<my-dog>", 4, 0, None),), "recipe": AttributeRecipe()}, []),
    ({"subjects": (Shown("<my-dog>", 1, 0, 1),), "recipe": AttributeRecipe()}, ["<my-dog> has one picture, in which"]),
    ({"subjects": (Shown("<my-dog>", 4, 2, 4),), "recipe": AttributeRecipe()},
     ["The captions of <my-dog> are not used: the prompts of Train DETEX"]),
    ({"subjects": (Shown("<my-dog>", 4, 0, 0),), "recipe": AttributeRecipe(filtered=0.0)}, []),
    ({"subjects": (Shown("<my-dog>", 4, 0, 4),), "recipe": AttributeRecipe()}, []),
    ({"subjects": (Shown("<my-dog>", 4, 0, 4),), "recipe": AttributeRecipe(filtered=0.0)},
     ["The masks of <my-dog> are not used"]),
    ({"subjects": (Shown("<my-dog>", 4, 0, 4),), "recipe": AttributeRecipe(filtered=0.0),
      "terms": (DiffusionLoss(), AttributeAttentionLoss())}, []),
    ({"terms": (DiffusionLoss(), AttributeAttentionLoss(0.0))}, ["The weight of the loss 'attribute attention' is 0"]),
    ({"subjects": (Shown("<my-dog>", 4, 3, 0),), "recipe": TemplateRecipe(captions=False)},
     ["3 pictures of <my-dog> have captions"]),
    ({"subjects": (Shown("<my-dog>", 4, 0, 0, Prior((), weight=0.0)),)}, ["The weight of the Prior Pictures"])])
def test_a_setting_that_cannot_act_is_one_sentence(changes, told):
    said = idle_settings(replace(FINE, **changes))
    assert len(said) == len(told) and all(map(str.startswith, said, told)), said


def test_the_graph_foretells_what_train_gets(execute, base, monkeypatch):
    write_inputs(base)
    jobs = []
    monkeypatch.setattr(nodes_train, "run_job", lambda job: (jobs.append(job), Outcome(
        tuple(subject.concept for subject in job.subjects), {}, {"history": []}))[1])
    prompt = graph()
    prompt["train"]["inputs"]["preset"] = "ViCo"
    execute(prompt)
    training = Graph(prompt).training("train").training
    terms = tuple(replace(term, contextualizer=None) if isinstance(term, MaskedLanguageLoss) else term
                  for term in jobs[0].terms)
    assert terms != jobs[0].terms
    assert (training.settings, tuple(training.parts), tuple(training.terms), training.recipe) == (
        jobs[0].settings, jobs[0].parts, terms, jobs[0].recipe)
    assert [each.placeholder for each in training.subjects] == ["<my-dog>"]
    assert training.subjects[0].prior.rows == 1


def test_an_image_encoder_is_left_open(execute, base, monkeypatch):
    """Which encoder it is changes neither need nor sentences, so that DETEX is foreseen before it is loaded."""
    write_inputs(base)
    jobs = []
    monkeypatch.setattr(nodes_train, "run_job", lambda job: (jobs.append(job), Outcome(
        tuple(subject.concept for subject in job.subjects), {}, {"history": []}))[1])
    prompt = with_detex(graph())
    prompt["train"]["inputs"]["preset"] = "DETEX"
    execute(prompt)
    foreseen = Graph(prompt).training("train").training
    parts = tuple(replace(part, clip_vision=None, vision="") if isinstance(part, AttributesPart) else part
                  for part in jobs[0].parts)
    assert parts != jobs[0].parts and (foreseen.settings, foreseen.parts, foreseen.recipe) == (
        jobs[0].settings, parts, jobs[0].recipe)
    assert told_plan.told(prompt, "train")["act"] == "trains"


@pytest.mark.parametrize("terms", [(DiffusionLoss(),), (DiffusionLoss(), CORE[0]), (DiffusionLoss(), *CORE),
                                   (DiffusionLoss(), CORE[0], replace(CORE[1], estimate=True))])
def test_every_text_of_a_word_for_each_layer_is_counted(sd15, base, terms):
    rows, layers = 2, 16
    plain, layered = (texts_encoded(sd15, part, terms, rows) for part in (EmbeddingPart(), PerLayerPart()))
    path = base / "models" / "checkpoints" / provide_checkpoint("sd15", base)
    settings = Settings(1, rows)
    flops, memory = [], []
    for part in (EmbeddingPart(), PerLayerPart()):
        foreseen = Foreseen(replace(FINE, settings=settings, parts=(part,), terms=terms), 64, "auto", {})
        each = counts(foreseen, path)
        flops.append(flops_of(foreseen, each))
        memory.append(estimate._memory(foreseen, each))
    assert each.layers == layers and layered - plain == texts_of_layers(foreseen, each, rows) > 0
    of_text = 2 * 77 * (2 * 12 * WIDTH_L**2)  # two layers: four products of attention, two of four times the width
    assert flops[1] - flops[0] == 2 * (layered - plain) * of_text
    assert memory[1] - memory[0] == (layered - plain) * each.text_kept


def texts_encoded(checkpoint, part, terms, rows) -> int:
    """How many texts go through the encoder with a gradient in a step on pictures with different captions."""
    counted = []
    pictures = tuple(replace(picture, caption=f"a <my-dog> in place {i}")
                     for i, picture in enumerate(subject(rows).pictures))

    def step(trainer, batch):
        hook = checkpoint.clip.cond_stage_model.clip_l.transformer.register_forward_pre_hook(
            lambda _, args, kwargs: counted.append(len(kwargs["embeds"]) * torch.is_grad_enabled()), with_kwargs=True)
        trainer._gradients(batch, False)
        hook.remove()

    with in_place_of_a_step(step):
        train(checkpoint, Settings(1, rows), subjects=(replace(subject(), pictures=pictures),), parts=(part,),
              terms=terms)
    return sum(counted)


@pytest.fixture(scope="module")
def tiny_server(server):
    provide_checkpoint("sd15", server.base)
    return server


def large(**changes) -> dict:
    """A training that fits on no machine with all pictures at once."""
    prompt = training_prompt("large", batch_size=64, steps=100, **changes)
    prompt["4"]["inputs"]["size"] = 2048
    return prompt


def test_the_server_counts_what_a_training_needs(tiny_server):
    def need(prompt: dict) -> dict:
        status, answer = tiny_server.post("/personalize/estimate", {"prompt": prompt, "node": TRAIN_NODE})
        assert status == 200 and answer["problem"] == ""
        return answer["need"]

    small, double = need(training_prompt("small")), need(training_prompt("small", steps=6))
    assert small["memory"] < small["available"] and small["proposal"] == {}
    assert double["seconds"] == pytest.approx(2 * small["seconds"])
    over, light = need(large()), need(large(gradient_checkpointing=True, micro_batch=1))
    assert over["memory"] > over["available"] and over["proposal"]["micro_batch"] < 64
    assert light["memory"] < over["proposal"]["memory"] <= over["available"]


def test_a_graph_that_says_anything_is_answered(tiny_server):
    strange = [{}, {TRAIN_NODE: 1}, {TRAIN_NODE: {"class_type": "PersonalizeTrain", "inputs": {"steps": "x"}}},
               {TRAIN_NODE: {"class_type": "PersonalizeTrain", "inputs": {"model": [TRAIN_NODE, 0]}}}]
    for prompt in strange:
        status, answer = tiny_server.post("/personalize/estimate", {"prompt": prompt, "node": TRAIN_NODE})
        assert (status, answer["need"]) == (200, None)
    assert tiny_server.post("/personalize/estimate", {"node": TRAIN_NODE})[0] == 400


@pytest.mark.parametrize("nodes2", [False, True], ids=["classic", "nodes2"])
def test_the_panel_says_it_and_takes_the_proposal(browser, tiny_server, nodes2):
    prompt = large(warmup_steps=100)
    with open_page(browser, tiny_server, nodes2=nodes2) as page:
        page.js("prompt => window.app.loadApiJson(prompt, 'large')", prompt)
        section = page.page.locator(".pz-estimate")
        section.get_by_text("it may not fit").wait_for(timeout=30_000)
        assert "warmup_steps is 100 of 100 steps" in section.inner_text()
        section.get_by_role("button").click()
        section.get_by_text("Needs about").wait_for()
        page.page.wait_for_function("() => !document.querySelector('.pz-estimate').classList.contains('pz-over')")
        taken = next(node["widgets"] for node in page.graph() if node["type"] == "PersonalizeTrain")
        assert 0 < taken["micro_batch"] < 64
        assert page.unexpected_messages() == []


def test_it_is_said_at_the_start_of_the_run_too(execute, base, caplog):
    write_inputs(base)
    prompt = graph()
    prompt["train"]["inputs"].update(steps=1, loss=["diffusion", 0], recipe=["prompts", 0], trainable=["embedding", 0],
                                     name="told")
    prompt["embedding"]["inputs"].pop("previous")
    execute(prompt)
    assert "Rescaling on Train Embedding would begin at step 2 of 1" in caplog.text
