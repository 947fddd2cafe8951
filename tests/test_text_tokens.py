"""Prompts as tokens: against a naive split, against what ComfyUI encodes, and with gradients to the vectors."""
from __future__ import annotations

import nodes
import pytest
import torch

from personalize.nodes.text.apply import clip_with_vectors
from personalize.nodes.text.embedding_files import prompt_text, save_embedding
from personalize.nodes.text.encode import differentiable_text_model, encode
from personalize.nodes.text.encoders import text_encoders
from personalize.nodes.text.layout import END as STOP
from personalize.nodes.text.layout import FILLED, LEARNED, WORD
from personalize.nodes.text.layout import START as BEGIN
from personalize.nodes.text.tokens import PromptTokenizer, Slot, comfy_tokens
from support.prompts_by_hand import END, SIZE, START, chunks_by_hand, same_tokens, words_to_ids


def vectors_for(clip, count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(seed)
    return {e.key: 0.1 * torch.randn(count, e.width, generator=noise) for e in text_encoders(clip)}


def context(layout) -> tuple[int, ...]:
    """Start, end and every word but those of the subject."""
    return tuple(p for p in layout.of_kind(BEGIN, STOP, WORD, LEARNED) if p not in layout.span(FILLED))


def tokens_only(chunk):
    return [token for token, _ in chunk]


@pytest.mark.smoke
def test_where_everything_sits(any_checkpoint):
    clip = any_checkpoint.clip
    tokens = PromptTokenizer(clip, {"<my-dog>": 2, "<cat>": 1})("a (<my-dog>:1.2) dog, <cat> and <my-dog>")
    a, dog, comma, and_ = words_to_ids("a dog , and")
    expected = [START, a, Slot("<my-dog>", 0), Slot("<my-dog>", 1), dog, comma, Slot("<cat>", 0), and_,
                Slot("<my-dog>", 0), Slot("<my-dog>", 1), END]
    for encoder in text_encoders(clip):
        (chunk,) = dict(tokens.chunks)[encoder.token_key]
        assert tokens_only(chunk) == expected + [encoder.tokenizer.pad_token] * (SIZE - len(expected))
        assert [weight for _, weight in chunk[:5]] == [1.0, 1.0, 1.2, 1.2, 1.0]
    assert tokens.layout.of_kind(STOP) == (10,) and tokens.layout.length == 77
    assert (
        tokens.layout.span("<my-dog>") == (2, 3, 8, 9)
        and tokens.layout.span("<cat>") == (6,)
        and tokens.layout.span("x") == ()
    )
    assert tokens.placeholders == {"<my-dog>", "<cat>"}
    assert context(tokens.layout) == tuple(range(11))


def test_filled_templates_have_the_same_context(any_checkpoint):
    tokenizer = PromptTokenizer(any_checkpoint.clip, {"<my-dog>": 3})
    ours, theirs = tokenizer.fill("a photo of {} on the beach", "<my-dog>"), tokenizer.fill(
        "a photo of {} on the beach", "teddy bear")
    assert ours.text == "a photo of <my-dog> on the beach" and theirs.text == "a photo of teddy bear on the beach"
    assert ours.layout.span(FILLED) == ours.layout.span("<my-dog>") == (4, 5,
                                                                        6) and theirs.layout.span(FILLED) == (4, 5)
    assert context(ours.layout) == (0, 1, 2, 3, 7, 8, 9, 10) and context(theirs.layout) == (0, 1, 2, 3, 6, 7, 8, 9)
    assert theirs.placeholders == frozenset() and theirs == tokenizer.fill("a photo of {} on the beach", "teddy bear")
    words = tokens_only(theirs.chunks[0][1][0])[1:10]
    assert words == words_to_ids("a photo of teddy bear on the beach") + [END]
    for tokens in (ours, theirs):
        kept = [tokens_only(tokens.chunks[0][1][0])[p] for p in context(tokens.layout)]
        assert kept == [START, *words_to_ids("a photo of on the beach"), END]


@pytest.mark.parametrize("template", ["a photo of a dog", "{} and {}", ""])
def test_templates_need_one_slot(sd15, template):
    with pytest.raises(ValueError, match=f"has {template.count('{}')} slots but needs exactly one {{}}"):
        PromptTokenizer(sd15.clip, {}).fill(template, "dog")


def test_no_placeholders_at_all(any_checkpoint):
    clip = any_checkpoint.clip
    tokens = PromptTokenizer(clip, {})("a (red:1.3) dog")
    assert comfy_tokens(tokens, text_encoders(clip), {}) == clip.tokenize("a (red:1.3) dog")


@pytest.mark.parametrize("count", [1, 9])
@pytest.mark.parametrize("before", [0, 66, 74, 75, 150])
def test_long_prompts_are_split_as_comfyui_splits_them(any_checkpoint, count, before):
    clip = any_checkpoint.clip
    vectors = {"<my-dog>": vectors_for(clip, count)}
    prompt = "very " * before + "<my-dog> " + "good " * 30
    tokens = PromptTokenizer(clip, {"<my-dog>": count})(prompt)
    found = comfy_tokens(tokens, text_encoders(clip), vectors)
    taught = clip_with_vectors(clip, vectors).tokenize(prompt)
    for e in text_encoders(clip):
        by_hand = chunks_by_hand([("very " * before, 1.0), (vectors["<my-dog>"][e.key], 1.0), ("good " * 30, 1.0)],
                                 e.tokenizer.pad_token)
        assert same_tokens(found[e.token_key], by_hand) and same_tokens(taught[e.token_key], by_hand)
    flat = [token for chunk in found[text_encoders(clip)[0].token_key] for token, _ in chunk]
    assert tokens.layout.span("<my-dog>") == tuple(i for i, token in enumerate(flat) if isinstance(token, torch.Tensor))
    assert [flat[end] for end in tokens.layout.of_kind(STOP)] == [END] * (tokens.layout.length // SIZE)
    good = words_to_ids("good")[0]
    around = [flat[position] for position in context(tokens.layout)]
    assert sum(not isinstance(token, torch.Tensor) and token == good for token in around) == 30


def test_embedding_files_and_other_concepts_in_the_prompt_are_kept(any_checkpoint):
    clip = any_checkpoint.clip
    style, cat, dog = (vectors_for(clip, count, seed) for count, seed in ((2, 1), (1, 2), (1, 3)))
    file = prompt_text(save_embedding("tokens-style", style, {}))
    taught = clip_with_vectors(clip, {"<cat>": cat})
    tokenizer = PromptTokenizer(taught, {"<my-dog>": 1})
    prompt = f"<cat> and <my-dog>, {file}"
    tokens = tokenizer(prompt)
    assert tokens.placeholders == {"<my-dog>"} and tokens.layout.span("<my-dog>") == (3,)
    assert tokens == tokenizer(prompt) and hash(tokens) == hash(tokenizer(prompt))
    assert tokens != tokenizer("<cat> and <my-dog>, <cat> <cat>")
    stock = nodes.CLIPTextEncode().encode(clip_with_vectors(taught, {"<my-dog>": dog}), prompt)[0][0]
    ours = encode(taught, [tokens], [{"<my-dog>": dog}])
    assert torch.equal(ours.cond, stock[0])


# ------------------------------------------------------------------------------------------------ encoding
def test_encoding_equals_the_stock_node(any_checkpoint):
    clip = any_checkpoint.clip
    vectors = {"<my-dog>": vectors_for(clip, 2)}
    tokenizer, taught = PromptTokenizer(clip, {"<my-dog>": 2}), clip_with_vectors(clip, vectors)
    prompts = ["a <my-dog> runs", "a red cat", "(a <my-dog>:1.3) sleeps", "a <my-dog> runs"]
    together = encode(clip, [tokenizer(p) for p in prompts], [vectors] * 4)
    assert together.cond.shape[:2] == (4, 77)
    for i, prompt in enumerate(prompts):
        (cond, options), = nodes.CLIPTextEncode().encode(taught, prompt)[0]
        pooled, alone = options["pooled_output"], encode(clip, [tokenizer(prompt)], [vectors])
        assert torch.equal(alone.cond, cond)
        assert alone.pooled is pooled is None or torch.equal(alone.pooled, pooled)
        torch.testing.assert_close(together.cond[i:i + 1], cond, atol=1e-5, rtol=1e-5)
        assert together.pooled is pooled is None or torch.allclose(together.pooled[i:i + 1], pooled, atol=1e-5,
                                                                   rtol=1e-5)


def test_rows_with_vectors_of_their_own(sdxl):
    clip = sdxl.clip
    each = [{"<x>": vectors_for(clip, 1, seed)} for seed in (1, 2)]
    tokens = PromptTokenizer(clip, {"<x>": 1})("a <x>")
    encoded = encode(clip, [tokens, tokens], each)
    for i, vectors in enumerate(each):
        assert torch.equal(encoded.cond[i], encode(clip, [tokens], [vectors]).cond[0])
    assert not torch.equal(encoded.cond[0], encoded.cond[1]) and not torch.equal(*encoded.pooled)


def test_prompts_of_different_lengths_share_a_batch_by_repetition(sd15):
    tokenizer = PromptTokenizer(sd15.clip, {})
    short, long, longer = (tokenizer("good " * n) for n in (3, 80, 160))
    encoded = encode(sd15.clip, [short, long], [{}, {}])
    alone = encode(sd15.clip, [short], [{}]).cond[0]
    assert torch.equal(encoded.cond[0], torch.cat([alone, alone]))
    with pytest.raises(ValueError, match="154 and 231 tokens cannot share a batch"):
        encode(sd15.clip, [long, longer], [{}, {}])


@pytest.mark.parametrize("prompt", ["a photo of <x> in the park", "<x>, " + "good " * 90])
def test_gradients_reach_the_vectors(any_checkpoint, prompt):
    import comfy.model_management

    clip = any_checkpoint.clip
    comfy.model_management.load_models_gpu([clip.patcher], force_full_load=True)
    tokens = PromptTokenizer(clip, {"<x>": 2})(prompt)
    with torch.inference_mode(False), torch.enable_grad(), differentiable_text_model(clip):
        plain = encode(clip, [tokens], [{"<x>": vectors_for(clip, 2)}])
        vectors = {key: rows.clone().requires_grad_() for key, rows in vectors_for(clip, 2).items()}
        weights = torch.randn(plain.cond.shape, generator=torch.Generator().manual_seed(1))

        def loss(rows):
            encoded = encode(clip, [tokens], [{"<x>": rows}])
            return (encoded.cond * weights).sum() + (encoded.pooled.sum() if encoded.pooled is not None else 0)

        value = loss(vectors)
        gradients = dict(zip(vectors, torch.autograd.grad(value, list(vectors.values()))))
        for key, gradient in gradients.items():
            direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(2))
            step = 1e-2 * direction / direction.norm()
            up, down = ({**vectors, key: vectors[key].detach() + sign * step} for sign in (1, -1))
            difference = (loss(up).double() - loss(down).double()) / 2
            torch.testing.assert_close((gradient * step).sum().double(), difference, rtol=2e-2, atol=1e-3)
    with torch.inference_mode():
        assert torch.equal(plain.cond, encode(clip, [tokens], [{"<x>": vectors_for(clip, 2)}]).cond)


def test_hooks_are_removed_after_an_error(sd15):
    with pytest.raises(KeyError), differentiable_text_model(sd15.clip):
        assert any(m._forward_pre_hooks for m in sd15.clip.cond_stage_model.modules())
        raise KeyError
    assert not any(m._forward_pre_hooks for m in sd15.clip.cond_stage_model.modules())
