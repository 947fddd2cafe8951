"""Context Similarity: the formulas against loops, the prompts that are compared, the node in the executor."""
from __future__ import annotations

import math

import pytest
import torch

from personalize.nodes.evaluate.comparing import Look, compare
from personalize.nodes.evaluate.similarity import (
    concept_context_similarity,
    context_similarity,
    symmetric_divergence,
)
from personalize.nodes.text.concept import Concept
from personalize.nodes.text.context_pairs import context_after
from personalize.nodes.text.encoders import text_encoders
from personalize.nodes.text.tokens import PromptTokenizer
from personalize.nodes.text.vectors import WordVectors
from support.failures import PromptFailed
from tiny.text_encoders import FAMILIES


def cosine(one, other):
    dot = sum(float(a) * float(b) for a, b in zip(one, other))
    return dot / math.sqrt(sum(float(a) ** 2 for a in one)) / math.sqrt(sum(float(b) ** 2 for b in other))


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------ formulas
def test_the_similarities_are_those_of_loops():
    ours, others = drawn(9, 5), drawn(7, 5, seed=1)
    found = concept_context_similarity(ours, [2, 3], [5, 6, 8])
    expected = [(cosine(ours[2], ours[b]) + cosine(ours[3], ours[b])) / 2 for b in (5, 6, 8)]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    pairs = ((5, 3), (6, 4), (8, 6))
    assert context_similarity(ours, others, pairs).tolist() == pytest.approx(
        [cosine(ours[i], others[j]) for i, j in pairs], abs=1e-12)


def test_the_divergence_is_that_of_a_loop_and_symmetric():
    maps = drawn(4, 25).exp()
    found = symmetric_divergence(maps[0], maps[1:])
    for other, value in zip(maps[1:], found.tolist()):
        p, q = ([float(x) / float(each.sum()) for x in each] for each in (maps[0], other))
        forth = sum(a * math.log(a / b) for a, b in zip(p, q))
        back = sum(b * math.log(b / a) for a, b in zip(p, q))
        assert value == pytest.approx((forth + back) / 2, abs=1e-12) and value > 0
    assert symmetric_divergence(maps[1], maps[:1]).item() == pytest.approx(found[0].item())
    assert symmetric_divergence(maps[0], 3 * maps[:1]).abs().max() < 1e-12, "how much attention there is does not count"


def test_no_attention_at_all_to_a_pixel_gives_a_number():
    maps = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    assert 80 < symmetric_divergence(maps[0], maps[1:]).item() < 100


# ------------------------------------------------------------------------------------------------ prompts
ENCODERS = ("sd15", "sdxl", "z_image", "qwen_image", "flux1")


def clip_of(kind, request):
    return FAMILIES[kind]() if kind in FAMILIES else request.getfixturevalue(kind)[1]


def concept(clip, count=2, layers=None, **changes):
    shape = (count,) if layers is None else (layers, count)
    vectors = WordVectors({e.key: 3 * torch.randn(*shape, e.width, generator=torch.Generator().manual_seed(1))
                           for e in text_encoders(clip)}, "layer" if layers else None)
    return Concept("<x>", changes.get("class_words", "dog"), "dog", count).with_vectors(vectors)


@pytest.mark.parametrize("kind", ENCODERS)
def test_each_number_is_what_the_stock_encoder_gives(kind, request):
    """By hand: prompts through the CLIP itself, words after the subject counted from the end."""
    from personalize.nodes.text.apply import apply_concepts

    clip = clip_of(kind, request)
    it = concept(clip)
    compared, = compare(clip, it, ["a photo of a {} in the desert"], ["puppy", "teddy bear"], None, lambda _: None)
    with torch.no_grad():
        taught, encoded = apply_concepts(clip, [it]), {}
        for word in ("<x>", "dog", "puppy", "teddy bear"):
            prompt = f"a photo of a {word} in the desert"
            layout = PromptTokenizer(clip, {"<x>": 2})(prompt).layout
            encoded[word] = taught.encode_from_tokens(taught.tokenize(prompt))[0], layout
    outputs, layout = encoded["<x>"]
    after = {word: own.of_kind("word")[-3:] for word, (_, own) in encoded.items()}
    expected = [cosine(outputs[i], outputs[b]) for b in after["<x>"] for i in layout.span("<x>")]
    assert compared.to_concept == pytest.approx(sum(expected) / len(expected), abs=5e-6)
    for word in ("<x>", "puppy", "teddy bear"):
        mine = encoded[word][0]
        rows = [cosine(mine[i], encoded["dog"][0][j]) for i, j in zip(after[word], after["dog"])]
        assert compared.cosines[word][:3] == pytest.approx(rows, abs=5e-6)
        if word == "<x>":
            assert compared.to_itself == pytest.approx(sum(rows) / 3, abs=5e-6) and min(rows) < 0.99999
    assert compared.words[:3] == ("in", "the", "desert") and set(compared.words[3:]) <= {"end"}


def test_class_words_after_the_slot_belong_to_the_subject(sd15):
    clip = sd15[1]
    tokenizer = PromptTokenizer(clip, {"<x>": 2})
    pairs = context_after(tokenizer.fill("a {} teddy bear on grass", "<x>"),
                          tokenizer.fill("a {} on grass", "teddy bear"))
    assert [ours - theirs for ours, theirs in pairs] == [2, 2]
    it = concept(clip, class_words="teddy bear")
    phrase, other = compare(clip, it, ["a {} teddy bear on grass", "a {} teddy bears on grass"], ["cat"], None,
                            lambda _: None)
    assert phrase.words == ("on", "grass", "end") and other.words == ("teddy", "bears", "on", "grass", "end")
    plain, = compare(clip, it, ["a {} on grass"], ["cat"], None, lambda _: None)
    assert phrase.cosines["cat"] == plain.cosines["cat"] and phrase.to_itself != plain.to_itself


def test_prompts_that_end_in_the_subject_are_left_out(sd15):
    it = concept(sd15[1])
    found = compare(sd15[1], it, ["a photo of a {}", "a {} at sea"], [], None, lambda _: None)
    assert [each.template for each in found] == ["a {} at sea"]
    with pytest.raises(ValueError, match="In none of the 1 prompts a word follows the subject"):
        compare(sd15[1], it, ["a photo of a {}"], [], None, lambda _: None)


def test_a_word_that_is_the_class_word_changes_nothing(sd15):
    """What Concept gives before training: the class word's own vector."""
    found, = compare(sd15[1], Concept("<x>", "dog", "dog"), ["a {} at sea"], ["dog"], None, lambda _: None)
    assert found.to_itself == pytest.approx(1, abs=1e-5)
    assert found.cosines["<x>"] == pytest.approx(found.cosines["dog"], abs=1e-5)


def test_vectors_of_layers_are_compared_layer_by_layer(sd15):
    it = concept(sd15[1], layers=2)
    template = ["a {} at sea"]
    both, = compare(sd15[1], it, template, [], None, lambda _: None)
    each = [compare(sd15[1], it.with_vectors(it.vectors.at(i)), template, [], None, lambda _: None)[0] for i in (0, 1)]
    assert both.to_concept == pytest.approx((each[0].to_concept + each[1].to_concept) / 2, abs=1e-6)
    assert both.to_itself == pytest.approx((each[0].to_itself + each[1].to_itself) / 2, abs=1e-6)
    look = Look(sd15[0], torch.zeros(1, 4, 8, 8), [200], 0, ())
    with pytest.raises(ValueError, match="has other vectors for every layer, whose attention cannot be looked at"):
        compare(sd15[1], it, template, [], look, lambda _: None)


# ------------------------------------------------------------------------------------------------ in the graph
def graph(**changes):
    return {
        "c": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}},
        "w": {"class_type": "PersonalizeConcept", "inputs": {
            "placeholder": "<x>", "class_words": "dog", "initial_words": "puppy", "vector_count": 1,
            "embedding": "none"}},
        "p": {"class_type": "PersonalizePromptSet", "inputs": {
            "kind": "none", "background": True, "action": True, "outfit": True, "style": True, "colour": True,
            "file": "none", "own_prompts": "a {} in the desert\na {} at sea\na {} on red grass"}},
        "e": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 2}},
        "s": {"class_type": "PersonalizeContextSimilarity", "inputs": {
            "clip": ["c", 1], "concept": ["w", 0], "prompt_set": ["p", 0], "control_words": "puppy, cat",
            "prompt_count": 200, "timesteps": "400", "seed": 3, "layers": "all", "layer_numbers": "", **changes}}}


SHOWN = {name: ["s", number] for number, name in enumerate(("report", "table", "sim1", "sim2", "skl"))}


def test_the_node_reports_and_gives_numbers(execute, tiny_checkpoints):
    run = execute(graph(), SHOWN)
    values = run.values
    assert values["report"].startswith("<x> in 3 prompts\nsim1 ") and "SKL" not in values["report"]
    assert math.isnan(values["skl"]) and -1 <= values["sim1"] < values["sim2"] <= 1
    lines = [line.split("\t") for line in values["table"].splitlines()]
    assert lines[0] == ["prompt", "sim1", "sim2", "skl", "<x>", "puppy", "cat"] and len(lines) == 4
    assert sum(float(line[2]) for line in lines[1:]) / 3 == pytest.approx(values["sim2"], abs=1e-5)
    assert all(line[4] == line[5] for line in lines[1:]), "the word starts as puppy"
    assert run.ui["s"]["text"] == [values["report"]]
    assert len(execute(graph(prompt_count=2), SHOWN).values["table"].splitlines()) == 3


def test_the_divergence_is_that_of_recorded_attention(execute, tiny_checkpoints):
    """By hand: Attention of Latent with the words, whose maps go through a loop."""
    looked = {"model": ["c", 0], "latent": ["e", 0], "prompt_count": 1}
    taught = {"class_type": "PersonalizeApplyConcept", "inputs": {"clip": ["c", 1], "concept": ["w", 0]}}
    spans = {"class_type": "PersonalizeEncodeWithSpans", "inputs": {
        "clip": ["t", 0], "prompt": "a <x> in the desert", "words": "in, the, desert"}}
    record = {"class_type": "PersonalizeAttentionOfLatent", "inputs": {
        "model": ["c", 0], "conditioning": ["n", 0], "latent": ["e", 0], "words": "<x>, in, the, desert",
        "timesteps": "400", "seed": 3, "layers": "all", "layer_numbers": "", "keep": "mean over steps"}}
    run = execute({**graph(**looked), "t": taught, "n": spans, "r": record}, {**SHOWN, "record": ["r", 0]}).values
    recorded, found = run["record"].current, []
    for layer in recorded.layers:
        for image in range(2):
            p, *others = (recorded.map(name, layer)[image].double().flatten()
                          for name in ("<x>", "in", "the", "desert"))
            for q in others:
                found.append(sum(float((a - b) * math.log(a / b)) for a, b in zip(p / p.sum(), q / q.sum())) / 2)
    assert run["skl"] == pytest.approx(sum(found) / len(found), rel=1e-4) and run["skl"] > 0
    assert f"SKL  {run['skl']:.4f}" in run["report"]


@pytest.mark.parametrize("changes, message", [
    ({"model": ["c", 0]}, "model is connected but latent is not; connect both for the divergence of attention"),
    ({"latent": ["e", 0]}, "latent is connected but model is not"),
    ({"model": ["c", 0], "latent": ["e", 0], "timesteps": "x"}, "timesteps is 'x'; write whole numbers")])
def test_what_cannot_be_compared_is_said(execute, changes, message, tiny_checkpoints):
    with pytest.raises(PromptFailed, match=message):
        execute(graph(**changes), SHOWN)
