"""CoRe Test-Time Optimization in the real executor, and what it does to a concept."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from personalize.nodes.families.noise import noise_levels
from personalize.nodes.papers.core.presets import FORMULAS, core_terms
from personalize.nodes.papers.core.test_time import NoisedScene, Refinement, Scene, refine, template_of
from personalize.nodes.text.apply import apply_concepts
from personalize.nodes.text.concept import Concept
from personalize.nodes.text.encoders import text_encoders
from personalize.nodes.text.placeholders import Placeholders
from personalize.nodes.text.vectors import WordVectors
from personalize.nodes.training.batch import Row, Subject
from support import core_by_hand
from support.core_by_hand import PromptByHand, maps, queries_and_keys
from support.failures import PromptFailed
from support.pictures import MadePicture

PROMPT = "a photo of <my-dog> in the red desert"


def concept(clip, placeholder="<my-dog>", class_words="dog", seed=1, count=1) -> Concept:
    draw = torch.Generator().manual_seed(seed)
    vectors = {e.key: 4 * e.table.float().std() * torch.randn(count, e.width, generator=draw)
               for e in text_encoders(clip)}
    return Concept(placeholder, class_words, class_words, count).with_vectors(vectors, {"run": "earlier"})


def refined(checkpoint, concepts, *, prompt=PROMPT, scene=None, **how):
    """The concepts and the losses of the steps, as the node calls it."""
    losses = []
    with torch.inference_mode():
        result = refine(checkpoint.model, checkpoint.clip, concepts,
                        Refinement(prompt, FORMULAS["as released"], **{"batch_size": 2, **how}),
                        scene or Scene(torch.zeros(1, 4, 8, 8)), lambda record: losses.append(record["parts"]))
    return result, losses


@torch.no_grad()
def losses_by_hand(checkpoint, concept, noisy, sigma):
    """Eqs. 3 and 4 by loops on a noised latent of the test's own."""
    model, clip, _ = checkpoint
    encoders = text_encoders(clip)
    vectors = {e.token_key: concept.vectors[e.key] for e in encoders}
    prompts = [PromptByHand([e.token_key for e in encoders], "a photo of", subject, "in the red desert")
               for subject in (vectors, concept.class_words)]
    encoded, kept = [p.encode(clip) for p in prompts], core_by_hand.kept_pairs(*prompts)
    found = [maps(run, run) for run in (queries_and_keys(model, noisy, sigma, *e) for e in encoded)]
    rows = [[[layer[0] for layer in side]] for side in found]
    return (core_by_hand.embedding_loss(encoded[0][0][0], encoded[1][0][0], *kept, released=False),
            core_by_hand.attention_loss(*rows, [kept[0]], [kept[1]], released=False))


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_ten_steps_bring_the_context_closer(kind, request):
    checkpoint = request.getfixturevalue(kind)
    before = concept(checkpoint.clip)
    (after,), losses = refined(checkpoint, [before], learning_rate=5e-3)
    assert len(losses) == 10 and set(losses[0]) == {"context embedding", "context attention"}
    draw = torch.Generator().manual_seed(9)
    noisy, sigma = torch.randn(1, 4, 8, 8, generator=draw) * 4, torch.tensor([4.0])
    with torch.inference_mode():
        start, end = (losses_by_hand(checkpoint, c, noisy, sigma) for c in (before, after))
    assert end[0] < start[0] and end[1] < start[1]
    assert after.settings == {"run": "earlier", "refined_for": PROMPT}
    for key, rows in after.vectors.items():
        assert not torch.equal(rows, before.vectors[key])


@pytest.mark.smoke
def test_learning_rate_of_zero_changes_nothing(sd15):
    before = concept(sd15.clip)
    (after,), _ = refined(sd15, [before], learning_rate=0.0, steps=2)
    assert all(torch.equal(rows, before.vectors[key]) for key, rows in after.vectors.items())


def test_steps_are_of_the_size_of_the_learning_rate(sd15):
    """AdamW from its first step, with the loop's weight decay of 0.01: no coordinate moves further."""
    before = concept(sd15.clip)
    (after,), _ = refined(sd15, [before], learning_rate=5e-4, steps=1)
    moved = after.vectors["clip_l"] - before.vectors["clip_l"] * (1 - 5e-4 * 0.01)
    assert moved.abs().max() <= 5e-4 * 1.001 and (moved.abs() > 4e-4).float().mean() > 0.9


def test_same_seed_same_result(sd15):
    runs = [refined(sd15, [concept(sd15.clip)], steps=2, seed=seed)[0][0].vectors["clip_l"] for seed in (3, 3, 4)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_with_pictures_as_released(sd15):
    """The subject's pictures are what is noised: other pictures, another result."""
    c, results = concept(sd15.clip), []
    for brightness in (0.0, 1.0):
        subject = Subject(replace(c, vectors=WordVectors()), (MadePicture(torch.full((1, 64, 64, 3), brightness)),))
        scene = Scene(torch.zeros(1, 4, 8, 8), (subject,), sd15.vae)
        results.append(refined(sd15, [c], scene=scene, steps=2)[0][0].vectors["clip_l"])
    assert not torch.equal(results[0], results[1])
    other = Subject(concept(sd15.clip, "<my-cat>"), (MadePicture(torch.zeros(1, 64, 64, 3)),))
    with pytest.raises(ValueError, match="subject holds pictures of <my-cat> but the prompt is about <my-dog>"):
        refined(sd15, [c], scene=Scene(torch.zeros(1, 4, 8, 8), (other,), sd15.vae))


def test_every_concept_in_the_prompt_is_refined(sd15):
    dog, cat, far = (concept(sd15.clip, name, word, seed) for seed, (name, word) in
                     enumerate((("<my-dog>", "dog"), ("<cat>", "fluffy cat"), ("<car>", "car"))))
    result, losses = refined(sd15, [dog, cat, far], prompt="a <cat> on top of (<my-dog>:1.2)", steps=2)
    assert [c.placeholder for c in result] == ["<my-dog>", "<cat>", "<car>"] and len(losses) == 4
    same = [torch.equal(a.vectors["clip_l"], b.vectors["clip_l"]) for a, b in zip(result, (dog, cat, far))]
    assert same == [False, False, True]


def test_on_a_clip_that_already_knows_the_concept(sd15):
    c = concept(sd15.clip)
    taught = sd15._replace(clip=apply_concepts(sd15.clip, [replace(c, vectors=WordVectors())]))
    plain, known = (refined(checkpoint, [c], steps=2)[0][0].vectors["clip_l"] for checkpoint in (sd15, taught))
    assert torch.equal(plain, known)


def test_noise_of_its_own_stays_in_the_later_half(sd15):
    sampling = sd15.model.get_model_object("model_sampling")
    levels = noise_levels(sd15.model)
    rows = [Row(0, 0, 0, "")] * 50
    empty = NoisedScene(torch.zeros(1, 4, 8, 8)).noised(rows, levels, 0, 1, "subject", "cpu")
    given = NoisedScene(torch.ones(2, 4, 8, 8)).noised(rows, levels, 0, 1, "subject", "cpu")
    middle = float(sampling.sigma(torch.tensor(500)))
    assert empty.sigma.min() >= middle * 0.999 and given.sigma.min() < middle < given.sigma.max()
    assert empty.noise.std() == pytest.approx(1, abs=0.05) and len({float(n.sum()) for n in empty.noise}) == 50


@pytest.mark.parametrize("prompt, placeholder, template", [
    ("a <my-dog> here", "<my-dog>", "a {} here"), ("(<my-dog>:1.3), wet", "<my-dog>", "({}:1.3), wet"),
    ("sks in sksland", "sks", "{} in sksland"), ("embedding:sks, sks-2", "sks", "{}, sks-2")])
def test_template(prompt, placeholder, template):
    assert template_of(prompt, placeholder, Placeholders([placeholder, "<other>"]).find(prompt)) == template


@pytest.mark.parametrize("prompt, message", [
    ("a dog", "holds none of the placeholders <my-dog>; write one"),
    ("<my-dog> beside <my-dog>", "holds <my-dog> 2 times")])
def test_prompts_that_cannot_be_refined(sd15, prompt, message):
    with pytest.raises(ValueError, match=message):
        refined(sd15, [concept(sd15.clip)], prompt=prompt)


def test_no_prompts_are_refused():
    with pytest.raises(ValueError, match="prompt_set is empty"):
        core_terms((), FORMULAS["as released"])


# ------------------------------------------------------------------------------------------------ the node
def node_prompt(checkpoint: str, **changed) -> dict:
    inputs = {"model": ["1", 0], "clip": ["1", 1], "concept": ["2", 0], "prompt": "a photo of {} in the red desert",
              "steps": 3, "learning_rate": 5e-4, "formulas": "as released", "batch_size": 2, "size": 64, "seed": 0}
    return {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
            "2": {"class_type": "PersonalizeConcept", "inputs": {
                "placeholder": "<my-dog>", "class_words": "dog", "initial_words": "cat", "vector_count": 1,
                "embedding": "none"}},
            "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 128, "batch_size": 1}},
            "4": {"class_type": "PersonalizeCoReTestTime", "inputs": {**inputs, **changed}},
            "5": {"class_type": "PersonalizeApplyConcept", "inputs": {"clip": ["1", 1], "concept": ["4", 0]}},
            "6": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["5", 0], "text": PROMPT}}}


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_node_gives_concept_and_conditioning(kind, execute, tiny_checkpoints):
    """The conditioning is what stock nodes make of the refined concept."""
    run = execute(node_prompt(tiny_checkpoints[kind], latent=["3", 0]), get={
        "concept": ["4", 0], "mine": ["4", 1], "losses": ["4", 2], "stock": ["6", 0]})
    assert run.values["concept"][0].settings["refined_for"] == PROMPT
    assert len(run.values["losses"]["loss"]) == 3 and run.progress[-1][:2] == (3, 3)
    (mine, options), = run.values["mine"]
    (stock, stock_options), = run.values["stock"]
    assert torch.equal(mine, stock)
    pooled = options.get("pooled_output"), stock_options.get("pooled_output")
    assert pooled[0] is pooled[1] is None or torch.equal(*pooled)


def test_node_says_what_to_connect(execute, tiny_checkpoints):
    subject = {"7": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 255}},
               "8": {"class_type": "PersonalizeSubject", "inputs": {
                   "concept": ["2", 0], "images": ["7", 0], "folder": "", "size": 64, "fit": "crop",
                   "augmentation": "none", "variants": 1, "seed": 0}}}
    for changed, message in (({"subject": ["8", 0]}, "subject is connected but vae is not"),
                             ({"subject": ["8", 0], "latent": ["3", 0]}, "latent and subject are both connected")):
        with pytest.raises(PromptFailed, match=message):
            execute({**node_prompt(tiny_checkpoints["sd15"], **changed), **subject}, get={"concept": ["4", 0]})
    prompt = node_prompt(tiny_checkpoints["sd15"], latent=["3", 0])
    prompt["3"] = {"class_type": "EmptySD3LatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
    with pytest.raises(PromptFailed, match="takes latents of 4 channels"):
        execute(prompt, get={"concept": ["4", 0]})
