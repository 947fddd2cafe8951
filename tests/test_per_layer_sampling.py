"""XTI while sampling: each cross-attention layer reads a prompt with its own vectors of the word."""
from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from personalize.nodes.attention.by_layer import CHANGED
from personalize.nodes.attention.words import words_of
from personalize.nodes.families.find import unet_of
from personalize.nodes.papers.core.test_time import refine
from personalize.nodes.text.apply import apply_concepts, clip_with_vectors
from personalize.nodes.text.concept import Concept, initial_vectors
from personalize.nodes.text.concept_files import load_concept, save_concept
from personalize.nodes.text.embedding_formats import read_embedding
from personalize.nodes.text.nodes_prompts import PersonalizeEncodeWithSpans
from personalize.nodes.text.vectors import WordVectors, mean_of
from personalize.nodes.training.nodes_per_layer import PersonalizeApplyPerLayerConcept
from support.companions import KINDS, composed
from support.layers_by_hand import cross_attentions, handed
from support.recorded import by_hand, close, plain_run, recording
from support.sampling import encoded, sample
from support.swap_world import World

PROMPT, NEGATIVE = "a photo of a (<my-dog>:1.3) on the beach", "ugly, a dog"
TINY = ("sd15", "sd21", "sdxl")
LONG = "a wide and sunny place, " * 20


def concept(model, clip, spread: float = 0.5, placeholder: str = "<my-dog>", seed: int = 0) -> Concept:
    """With vectors that differ from layer to layer by this much."""
    draw, plain = torch.Generator().manual_seed(seed), Concept(placeholder, "dog", "cat dog", 2)
    layers = len(unet_of(model).layers)
    vectors = {key: rows + spread * rows.std() * torch.randn(layers, *rows.shape, generator=draw)
               for key, rows in initial_vectors(plain, clip).items()}
    return plain.with_vectors(WordVectors(vectors, "layer"))


def applied(model, clip, *concepts: Concept):
    return PersonalizeApplyPerLayerConcept.execute(model, clip, concepts).args


def of_layer(clip, found: Concept, layer: int):
    """The CLIP that knows the word as one layer does."""
    return clip_with_vectors(clip, {found.placeholder: found.vectors.at(layer)})


@pytest.mark.parametrize(("kind", "negative"), [
    ("sd15", LONG), ("sd15", PROMPT), ("sd21", NEGATIVE), ("sdxl", LONG)])
def test_equal_vectors_sample_as_plain_conditioning_to_the_bit(kind, negative, request):
    """Beside a plain negative prompt, one of two chunks, and one with the word."""
    model, clip, _ = request.getfixturevalue(kind)
    found = concept(model, clip, spread=0.0)
    plain = of_layer(clip, found, 0)
    patched, taught = applied(model, clip, found)
    assert torch.equal(sample(patched, encoded(taught, PROMPT), encoded(taught, negative), batch=2),
                       sample(model, encoded(plain, PROMPT), encoded(plain, negative), batch=2))


def test_without_the_word_nothing_changes(sd15):
    model, clip, _ = sd15
    patched, taught = applied(model, clip, concept(model, clip))
    assert list(encoded(taught, NEGATIVE)[0][1]) == ["pooled_output"]
    assert torch.equal(sample(patched, encoded(taught, "a dog"), encoded(taught, NEGATIVE)),
                       sample(model, encoded(clip, "a dog"), encoded(clip, NEGATIVE)))


@pytest.mark.parametrize("kind", TINY)
def test_each_layer_reads_what_a_loop_hands_it(kind, request):
    """The loop encodes once for each layer and counts the layers' calls itself; the negative prompt stays plain."""
    model, clip, _ = request.getfixturevalue(kind)
    found = concept(model, clip)
    patched, taught = applied(model, clip, found)
    positive, negative = encoded(taught, PROMPT), encoded(clip, NEGATIVE)
    ours = sample(patched, positive, negative, batch=2)
    texts = [encoded(of_layer(clip, found, layer), PROMPT)[0][0] for layer in range(len(unet_of(model).layers))]
    plain = [[positive[0][0], {"pooled_output": positive[0][1]["pooled_output"]}]]
    torch.testing.assert_close(positive[0][0], torch.cat(texts).mean(0, keepdim=True))
    with handed(cross_attentions(model, negative), texts, negative[0][0]):
        expected = sample(model, plain, negative, batch=2)
    assert torch.equal(ours, expected)
    with handed(cross_attentions(model, negative), texts[::-1], negative[0][0]):
        other = sample(model, plain, negative, batch=2)
    assert (other - expected).abs().max() > 1e-3


def test_layers_exchanged_give_another_picture(sd15):
    model, clip, _ = sd15
    found = concept(model, clip)
    turned = found.with_vectors(WordVectors({key: v[[1, 0, *range(2, len(v))]] for key, v in found.vectors.items()},
                                            "layer"))
    pictures = [sample(*_prompts(applied(model, clip, each))) for each in (found, turned)]
    assert (pictures[0] - pictures[1]).abs().max() > 1e-4


def _prompts(of):
    model, clip = of
    return model, encoded(clip, PROMPT), encoded(clip, NEGATIVE)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "plain"])
def test_it_composes_with_what_others_put_beside_it(kind, sd15):
    """Equal vectors beside a companion draw what plain conditioning draws beside it; other vectors do not."""
    model, clip, _ = sd15
    pictures = []
    for spread in (0.0, 0.5):
        found = concept(model, clip, spread)
        taught = applied(model, clip, found)[1]
        patched, positive = composed(kind, model, encoded(taught, PROMPT),
                                     lambda m, found=found: applied(m, clip, found)[0])
        pictures.append(sample(patched, positive, encoded(taught, NEGATIVE)))
    plain = of_layer(clip, concept(model, clip, 0.0), 0)
    beside, positive = composed(kind, model, encoded(plain, PROMPT), lambda m: m)
    expected = sample(beside, positive, encoded(plain, NEGATIVE))
    assert torch.equal(pictures[0], expected) and (pictures[1] - expected).abs().max() > 1e-3


def test_patches_of_others_see_what_the_layer_reads(sd15):
    """Also those that stood on the model before, and that join tokens to the text."""
    model, clip, _ = sd15
    found, seen = concept(model, clip), []
    joined = torch.randn(1, 4, encoded(clip, "")[0][0].shape[2], generator=torch.Generator().manual_seed(1))

    def join(n, context, value, options):
        seen.append(context)
        return n, *(torch.cat([each, joined.to(each).expand(len(each), -1, -1)], 1) for each in (context, value))

    before = model.clone()
    before.set_model_attn2_patch(join)
    patched, taught = applied(before, clip, found)
    picture = sample(patched, encoded(taught, PROMPT), encoded(clip, NEGATIVE), steps=1, cfg=1.0)
    layers = len(unet_of(model).layers)
    for layer, context in enumerate(seen[:layers]):
        assert torch.equal(context, encoded(of_layer(clip, found, layer), PROMPT)[0][0].to(context))
    assert picture.isfinite().all() and len(seen) == layers


def test_recorded_maps_are_those_of_each_layers_own_words(sd15):
    """Wherever the recorder stands; by hand from the keys that the layers made."""
    model, clip, _ = sd15
    found, prompt = concept(model, clip), "a <my-dog> on the beach"
    patched, taught = applied(model, clip, found)
    positive, negative = encoded(taught, prompt), encoded(clip, "")
    plain, seen = plain_run(patched, positive, negative)
    words = words_of(["beach"], taught, prompt)
    before, after = recording(model, words), recording(patched, words)
    pictures = [sample(applied(before[0], clip, found)[0], positive, negative), sample(after[0], positive, negative)]
    assert all(torch.equal(picture, plain) for picture in pictures)
    (place,) = words.prompt.find("beach")
    for record in (before[1], after[1]):
        run = record.sampling(plain)
        for layer in run.layers:
            assert close(run.map("beach", layer, 1), by_hand(seen, layer, 1)[1:][..., place])


def test_self_attention_swap_beside_it(exact):
    """The swap's own run has visual tokens and no words of layers."""
    world, pictures = World(exact("sd15"), side=8), {}

    def spans(clip):
        return PersonalizeEncodeWithSpans.execute(clip, "a <my-dog> dog", "dog").args[0]

    for spread in (0.0, 0.5):
        found = concept(world.model, world.clip, spread)
        taught = applied(world.model, world.clip, found)[1]
        swapped, record = world.swap(applied(world.model, world.clip, found)[0])
        pictures[spread] = world.sample(swapped, spans(taught), steps=2)
        assert record.branch_latent.isfinite().all()
    plain = of_layer(world.clip, concept(world.model, world.clip, 0.0), 0)
    expected = world.sample(world.swap()[0], spans(plain), steps=2)
    assert torch.equal(pictures[0.0], expected) and (pictures[0.5] - expected).abs().max() > 1e-3


def test_stock_nodes_between_prompt_and_sampler(sd15, caplog):
    """Joined text is read by every layer after its own; areas and ranges stay; a text that was zeroed or mixed is drawn
    with as it is, which is said."""
    from nodes import ConditioningAverage, ConditioningConcat, ConditioningSetArea, ConditioningSetTimestepRange

    model, clip, _ = sd15
    found = concept(model, clip)
    patched, taught = applied(model, clip, found)
    own, more, negative = encoded(taught, PROMPT), encoded(clip, "a red house"), encoded(clip, NEGATIVE)
    (joined,) = ConditioningConcat().concat(own, more)
    texts = [torch.cat([encoded(of_layer(clip, found, layer), PROMPT)[0][0], more[0][0]], 1)
             for layer in range(len(unet_of(model).layers))]
    with handed(cross_attentions(model, negative), texts, torch.cat([negative[0][0]] * 2, 1)):
        expected = sample(model, [[joined[0][0], {}]], negative)
    assert torch.equal(sample(patched, joined, negative), expected)

    (half,) = ConditioningSetArea().append(own, 64, 128, 0, 0, 1.0)
    (late,) = ConditioningSetTimestepRange().set_range(own, 0.5, 1.0)
    pictures = [sample(patched, positive, negative) for positive in (own, [*half, *more], [*late, *more])]
    assert not any(torch.equal(one, other) for one, other in zip(pictures, (*pictures[1:], pictures[0])))
    assert CHANGED not in caplog.text

    (mixed,) = ConditioningAverage().addWeighted(own, more, 0.5)
    plain = [[mixed[0][0], {"pooled_output": mixed[0][1]["pooled_output"]}]]
    assert torch.equal(sample(patched, mixed, negative), sample(model, plain, negative))
    assert caplog.text.count(CHANGED) == 1


def test_several_concepts_also_plain_ones(sd15):
    model, clip, _ = sd15
    first, second = concept(model, clip), concept(model, clip, placeholder="<my-cat>", seed=1)
    plain = Concept("<my-hat>", "hat", "red hat", 2)
    prompt = "a <my-dog> and a <my-cat> with a <my-hat>"
    together = applied(model, clip, first, second, plain)
    one_by_one = applied(*applied(model, apply_concepts(clip, [plain]), first), second)
    negative = encoded(clip, NEGATIVE)
    pictures = [sample(patched, encoded(taught, prompt), negative) for patched, taught in (together, one_by_one)]
    assert torch.equal(*pictures)
    attentions = cross_attentions(model, negative)
    words = [{each.placeholder: initial_vectors(each, clip).at(layer) for each in (first, second, plain)}
             for layer in range(len(unet_of(model).layers))]
    with handed(attentions, [encoded(clip_with_vectors(clip, each), prompt)[0][0] for each in words], negative[0][0]):
        assert torch.equal(sample(model, [[encoded(together[1], prompt)[0][0], {}]], negative), pictures[0])


def test_a_saved_file_draws_the_same_and_is_the_mean_to_stock_nodes(sd15, embeddings):
    model, clip, _ = sd15
    found = concept(model, clip)
    read = load_concept(save_concept(found, "per-layer"))
    assert read.vectors.axis == "layer" and read.placeholder == "<my-dog>"
    assert torch.equal(sample(*_prompts(applied(model, clip, found))), sample(*_prompts(applied(model, clip, read))))
    (vectors,) = found.vectors.values()
    mean = clip_with_vectors(clip, {"<mean>": {"clip_l": mean_of(vectors)}})
    torch.testing.assert_close(mean_of(vectors), vectors.mean(0), rtol=1e-5, atol=1e-6)
    assert torch.equal(encoded(clip, "a embedding:per-layer dog")[0][0], encoded(mean, "a <mean> dog")[0][0])


def test_what_cannot_be_is_said(sd15, z_image, sdxl, embeddings):
    model, clip, _ = sd15
    found = concept(model, clip)
    with pytest.raises(ValueError, match="use Apply Per-Layer Concept"):
        apply_concepts(clip, [found])
    with pytest.raises(ValueError, match="are not refined for a prompt; connect a concept of Train Embedding"):
        refine(model, clip, (found,), None, None, print)
    with pytest.raises(ValueError, match="is no U-Net"):
        applied(z_image[0], z_image[1], found)
    with pytest.raises(ValueError, match="needs clip_g"):
        applied(sdxl[0], sdxl[1], found)
    fewer = found.with_vectors(WordVectors({key: v[:3] for key, v in found.vectors.items()}, "layer"))
    with pytest.raises(ValueError, match="vectors for 3 layers but this model has"):
        applied(model, clip, fewer)
    with pytest.raises(ValueError, match="choose the format safetensors"):
        save_concept(found, "other", "diffusers (.bin)")


@pytest.mark.parametrize(("layers", "message"), [
    (torch.ones(9, 3, 32), "is damaged or no embedding file"), (torch.ones(9, 32), "is damaged or no embedding file"),
    (torch.full((9, 2, 32), float("nan")), "holds values that are not numbers"),
    (torch.ones(9, 2, 32).int(), "holds numbers of the type int32")], ids=["others", "no layers", "NaN", "whole"])
def test_files_whose_layers_are_broken_are_refused(layers, message, tmp_path):
    save_file({"clip_l": torch.ones(2, 32), "clip_l.layers": layers}, tmp_path / "word.safetensors")
    with pytest.raises(ValueError, match=message):
        read_embedding(tmp_path / "word.safetensors", {"clip_l": 32})
