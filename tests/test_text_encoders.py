"""Words in the text encoders of other families: where they stand, proved by changing them, and how they are taught."""
from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from comfy.conds import is_equal

from personalize.nodes.text.apply import clip_with_vectors, vector_of
from personalize.nodes.text.embedding_files import load_embedding, save_embedding
from personalize.nodes.text.encode import differentiable_text_model, encode
from personalize.nodes.text.encoders import text_encoders
from personalize.nodes.text.layout import END, FILLED, LEARNED, PADDING, START, TEMPLATE, WORD
from personalize.nodes.text.token_view import nearest_words, report, token_rows, vectors_in
from personalize.nodes.text.tokens import PromptTokenizer, prompt_tokens
from tiny.text_encoders import FAMILIES

NEWER = {"krea2"}
CAUSAL = ("z_image", "klein", "qwen_image", "krea2", "lumina2", "flux2")
PROMPT = "a photo of <x> in the snow"


class Family(NamedTuple):
    name: str
    clip: object


@pytest.fixture(scope="module")
def family(request) -> Family:
    return Family(request.param, FAMILIES[request.param]())


def of(*names):
    """Of these families; what all tests do with one of them is done while it is there."""
    newer = [pytest.param(name, marks=pytest.mark.newer) if name in NEWER else name for name in names]
    return pytest.mark.parametrize("family", newer, indirect=True)


def vectors_for(clip, count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(seed)
    return {e.key: torch.randn(count, e.width, generator=noise) for e in text_encoders(clip)}


def conditioning(clip, prompt: str, vectors) -> list:
    """[cond, options] by stock nodes with Apply Concept."""
    taught = clip_with_vectors(clip, {"<x>": vectors})
    with torch.no_grad():
        return taught.encode_from_tokens_scheduled(taught.tokenize(prompt))[0]


def cond(clip, prompt: str, vectors) -> torch.Tensor:
    """(T, C) by stock nodes with Apply Concept."""
    return conditioning(clip, prompt, vectors)[0][0]


def changed_rows(one: torch.Tensor, other: torch.Tensor, tolerance: float = 0.0) -> list[int]:
    shorter = min(len(one), len(other))
    one, other = one[:shorter], other[:shorter]
    return ((one - other).abs().amax(-1) > tolerance * one.abs().max()).nonzero().flatten().tolist()


def changed_at(vectors, index: int, key: str):
    changed = {name: rows.clone() for name, rows in vectors.items()}
    changed[key][index] += 0.5
    return changed


@of(*CAUSAL)
def test_a_vector_changes_its_own_row_and_those_after_it(family):
    """In a causal language model; what is cut off, padded or put around is counted."""
    clip = family.clip
    vectors = vectors_for(clip, 2)
    tokens = PromptTokenizer(clip, {"<x>": 2})(PROMPT)
    before = cond(clip, PROMPT, vectors)
    assert len(before) == tokens.layout.length and len(tokens.layout.span("<x>")) == 2
    for index, position in enumerate(tokens.layout.span("<x>")):
        rows = changed_rows(before, cond(clip, PROMPT, changed_at(vectors, index, text_encoders(clip)[0].key)))
        assert rows == list(range(position, len(before)))
    other = cond(clip, PROMPT.replace("snow", "house"), vectors)
    assert changed_rows(before, other, 1e-5)[0] == tokens.layout.find("snow")[0]


@of("flux1", "sd3", "pixart")
def test_a_vector_changes_its_own_row_of_t5_most(family):
    """T5 looks both ways: every row changes. CLIP's rows come out in SD3, before those of T5, and not in Flux."""
    name, clip = family
    vectors = vectors_for(clip, 2)
    layout = PromptTokenizer(clip, {"<x>": 2})(PROMPT).layout
    before = cond(clip, PROMPT, vectors)
    assert len(before) == layout.length
    of_clip = (4, 5) if name == "sd3" else ()
    start = 77 if name == "sd3" else 0
    for index in range(2):
        for encoder in text_encoders(clip):
            after = cond(clip, PROMPT, changed_at(vectors, index, encoder.key))
            change = (after - before).abs().amax(-1)
            if encoder.key == "t5xxl":
                assert int(change.argmax()) == layout.span("<x>")[len(of_clip) + index] and not change[:start].any()
            elif name == "flux1":
                assert not change.any()
            else:
                assert changed_rows(before, after) == list(range(of_clip[index], 77))
    assert layout.span("<x>")[:len(of_clip)] == of_clip
    snow, house = cond(clip, PROMPT, vectors)[start:], cond(clip, PROMPT.replace("snow", "house"), vectors)[start:]
    assert int((snow - house).abs().amax(-1).argmax()) + start == layout.find("snow")[-1]


@of(*CAUSAL, "flux1")
@pytest.mark.parametrize("prompt", [PROMPT, "<x>", "a photo of <x>", "<x>, in the snow", "the (<x>:1.3)", "\"<x>\"",
                                    "<x>'s hat", "<x><x> <x>"])
def test_a_taught_word_leaves_all_other_tokens_as_beside_an_ordinary_one(family, prompt):
    name, clip = family
    key = "t5xxl" if name == "flux1" else text_encoders(clip)[0].token_key
    words = prompt.replace("<x><x>", "<x> <x>").replace("<x>", "boy")
    (ordinary,) = clip.tokenize(words)[key]
    (taught,) = clip_with_vectors(clip, {"<x>": vectors_for(clip, 1)}).tokenize(prompt)[key]
    differing = [i for i, (one, other) in enumerate(zip(ordinary, taught, strict=True)) if one != other]
    assert len(differing) == prompt.count("<x>") and all(ordinary[i][1] == taught[i][1] for i in differing)
    assert all(vector_of(taught[i][0]) is not None for i in differing)
    (longer,) = clip_with_vectors(clip, {"<x>": vectors_for(clip, 3)}).tokenize(prompt)[key]
    assert sum(vector_of(token) is not None for token, _ in longer) == 3 * prompt.count("<x>")
    padded = clip.tokenizer.t5xxl.min_length if name == "flux1" else 512 if name == "klein" else 0
    assert len(longer) == max(padded, len(ordinary) + 2 * prompt.count("<x>") * (not padded))


AROUND = {"z_image": [TEMPLATE] * 3, "klein": [TEMPLATE] * 3, "qwen_image": [], "krea2": [], "lumina2": [START],
          "flux1": [], "pixart": [], "sd3": [START]}


@of(*AROUND)
def test_what_stands_around_a_prompt(family):
    name, clip = family
    around = AROUND[name]
    layout = prompt_tokens(clip, "a red hat, in the snow").layout
    kinds = [piece.kind for piece in layout.pieces]
    assert kinds[:len(around) + 1] == [*around, WORD]
    words = [piece.text for piece in layout.pieces if piece.kind == WORD]
    assert "".join(words[:len(words) // (2 if name == "sd3" else 1)]) == "aredhat,inthesnow"
    assert [word.text for word in layout.words()][:3] == ["a", "red", "hat"]
    hat = layout.find("red hat")
    assert "".join(layout.pieces[p].text for p in hat) == "redhat" * (2 if name == "sd3" else 1)
    assert hat[-len(layout.find("hat")):] == layout.find("hat") or name == "sd3"
    assert layout.find("hot") == layout.find("ha") == ()
    after = [kind for kind in kinds[len(around):] if kind != WORD]
    assert after[:1] == ([] if name == "lumina2" else [END])
    assert (PADDING in after) == (name in ("klein", "flux1", "sd3"))


@of(*CAUSAL, "flux1", "sd3", "pixart")
def test_training_encodes_as_apply_concept_does(family):
    """Prompts of different length in one call, with gradients to every vector that comes out."""
    name, clip = family
    vectors = {key: rows.requires_grad_() for key, rows in vectors_for(clip, 2).items()}
    tokenizer = PromptTokenizer(clip, {"<x>": 2})
    prompts = (PROMPT, "<x>, a dog")
    with torch.enable_grad(), differentiable_text_model(clip):
        for prompt in prompts:
            encoded = encode(clip, [tokenizer(prompt)], [{"<x>": vectors}])
            stock, (ours,) = conditioning(clip, prompt, vectors), encoded.conditioning()
            assert torch.equal(ours[0].detach(), stock[0]) and ours[1].keys() == stock[1].keys()
            assert all(is_equal(value, stock[1][name]) for name, value in ours[1].items())
        weight = torch.randn(encoded.cond.shape, generator=torch.Generator().manual_seed(2))
        loss = (encoded.cond * weight).sum()
        loss.backward()
    for key, rows in vectors.items():
        assert (rows.grad is None or not rows.grad.any()) == (name == "flux1" and key == "clip_l")
    key = "t5xxl" if "t5xxl" in vectors else next(iter(vectors))
    direction = torch.randn(vectors[key].shape, generator=torch.Generator().manual_seed(3))

    def loss_at(step: float) -> float:
        moved = {**vectors, key: vectors[key].detach() + step * direction}
        return float((cond(clip, prompts[1], moved) * weight[0]).double().sum())

    slope = (loss_at(1e-3) - loss_at(-1e-3)) / 2e-3
    assert slope == pytest.approx(float((vectors[key].grad * direction).sum()), rel=0.02)


def others(layout) -> list[str]:
    """Words beside the subject."""
    return [layout.pieces[p].text for p in layout.of_kind(WORD, LEARNED) if p not in layout.span(FILLED)]


@of(*CAUSAL, "flux1", "sd3")
def test_a_template_is_filled_with_a_word_or_with_ordinary_ones(family):
    tokenizer = PromptTokenizer(family.clip, {"<x>": 3})
    ours, theirs = (tokenizer.fill("a photo of {}, in the snow", words) for words in ("<x>", "teddy bear"))
    assert theirs.chunks == tokenizer("a photo of teddy bear, in the snow").chunks
    assert theirs.layout.span(FILLED) == theirs.layout.find("teddy bear")
    assert ours.layout.span(FILLED) == ours.layout.span("<x>")
    assert others(ours.layout) == others(theirs.layout)


@of("z_image", "flux1", "lumina2")
def test_prompt_tokens_are_shown(family):
    clip = family.clip
    (*_, encoder) = text_encoders(clip)
    (dog,) = encoder.word_ids("dog")
    vectors = {**vectors_for(clip, 1), encoder.key: encoder.table[[dog]].float().clone()}
    taught = clip_with_vectors(clip, {"<x>": vectors})
    rows = token_rows(taught, PROMPT, ["snow"])
    shown = report(rows, nearest_words(encoder, vectors_in(taught, PROMPT)[encoder.key], 2))
    assert [row.role for row in rows if row.token == "snow"] == ["class"] and "<x> 1/1" in shown
    assert "near to: dog 1.00" in shown


@of("flux1")
def test_files_hold_the_vectors_of_every_encoder(family):
    vectors = vectors_for(family.clip, 2)
    path = save_embedding("of-flux", vectors, {})
    loaded, _ = load_embedding(path)
    assert loaded.keys() == vectors.keys() == {"clip_l", "t5xxl"}
    assert all(torch.equal(loaded[key], vectors[key]) for key in vectors)


@of("flux1")
def test_a_clip_of_another_arrangement_is_refused_by_name(family):
    clip = family.clip.clone()
    clip.cond_stage_model = type("OtherModel", (type(clip.cond_stage_model),), {"encode_token_weights": None})()
    with pytest.raises(ValueError, match=r"this CLIP \(OtherModel\) makes of a prompt is not known"):
        text_encoders(clip)
