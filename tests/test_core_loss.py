"""CoRe's formulas as pure maths: naive loops, gradients, alignment of prompts."""
from __future__ import annotations

import pytest
import torch

from personalize.nodes.papers.core.loss import context_attention_loss, context_embedding_loss
from personalize.nodes.text.context_pairs import aligned_context
from personalize.nodes.text.encoders import text_encoders
from personalize.nodes.text.tokens import PromptTokenizer
from support import core_by_hand
from support.core_by_hand import PromptByHand

PAIRS = (((0, 0), (2, 1), (5, 4)), ((0, 0), (1, 2), (3, 3)))


def outputs(rows, tokens, seed, width=8):
    return torch.randn(rows, tokens, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def means(layers, rows, tokens, seed):
    draw = torch.Generator().manual_seed(seed)
    return [torch.rand(rows, tokens, dtype=torch.float64, generator=draw) for _ in range(layers)]


def kept(pairs):
    return [i for i, _ in pairs], [j for _, j in pairs]


@pytest.mark.parametrize("axis", ["feature", "token"])
@pytest.mark.smoke
def test_embedding_loss_equals_loops(axis):
    ours, theirs = outputs(2, 7, 0), outputs(2, 6, 1)
    expected = [core_by_hand.embedding_loss(ours[r], theirs[r], *kept(PAIRS[r]), axis == "token") for r in (0, 1)]
    assert float(context_embedding_loss(ours, theirs, PAIRS, axis)) == pytest.approx(sum(expected) / 2, rel=1e-12)
    shared = [core_by_hand.embedding_loss(ours[r], theirs[0], *kept(PAIRS[0]), axis == "token") for r in (0, 1)]
    assert float(context_embedding_loss(ours, theirs[:1], PAIRS[:1], axis)) == pytest.approx(sum(shared) / 2, rel=1e-12)


def test_axes_differ():
    ours, theirs = outputs(1, 7, 0), outputs(1, 6, 1)
    losses = [float(context_embedding_loss(ours, theirs, PAIRS[:1], axis)) for axis in ("feature", "token")]
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.parametrize("formula", ["paper", "released"])
def test_attention_loss_equals_loops(formula):
    ours, theirs = means(3, 6, 7, 2), means(3, 6, 6, 3)
    maps = [[[layer[row][None, None] for layer in side] for row in range(6)] for side in (ours, theirs)]
    pairs = [PAIRS[row % 2] for row in range(6)]
    positions = [[[i for i, _ in p] for p in pairs], [[j for _, j in p] for p in pairs]]
    expected = core_by_hand.attention_loss(*maps, *positions, formula == "released")
    assert float(context_attention_loss(ours, theirs, pairs, formula)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("formula", ["paper", "released"])
def test_attention_loss_does_not_change_with_the_batch_size(formula):
    ours, theirs = means(3, 2, 7, 2), means(3, 1, 6, 3)
    once = context_attention_loss(ours, theirs, PAIRS[:1], formula)
    thrice = context_attention_loss([m.repeat(3, 1) for m in ours], theirs, PAIRS[:1], formula)
    torch.testing.assert_close(once, thrice)


@pytest.mark.smoke
def test_gradients_equal_finite_differences():
    ours, theirs = outputs(2, 7, 0).requires_grad_(), outputs(2, 6, 1)
    for axis in ("feature", "token"):
        assert torch.autograd.gradcheck(lambda x, axis=axis: context_embedding_loss(x, theirs, PAIRS, axis), ours)
    maps, fixed = [m.requires_grad_() for m in means(3, 2, 7, 2)], means(3, 2, 6, 3)
    for formula in ("paper", "released"):
        assert torch.autograd.gradcheck(lambda *x, formula=formula: context_attention_loss(x, fixed, PAIRS, formula),
                                        maps)


def test_half_precision_is_computed_in_float32():
    ours, theirs = outputs(1, 7, 0).half(), outputs(1, 6, 1).half()
    loss = context_embedding_loss(ours, theirs, PAIRS[:1])
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, context_embedding_loss(ours.float(), theirs.float(), PAIRS[:1]))


# ------------------------------------------------------------------------------------------------ alignment
TEMPLATES = {"short": ("a photo of", "in the desert"), "first": ("", "in the desert"), "last": ("a photo of a", ""),
             "punctuation": ("a drawing, of", ", in the rain . Best quality!"),
             "two chunks": ("a photo of a", " ".join(["green"] * 90)),
             "late": (" ".join(["green"] * 90) + " and", "in the desert"),
             "straddles": (" ".join(["green"] * 74), "in the desert")}


@pytest.mark.parametrize("before, after", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("class_words", ["dog", "teddy bear", "golden retriever puppy dog"])
@pytest.mark.parametrize("count", [1, 3])
def test_alignment_equals_hand(any_checkpoint, before, after, class_words, count):
    """Kept tokens are those found by hand, and the same word stands on both sides of every pair."""
    clip = any_checkpoint.clip
    encoders = text_encoders(clip)
    tokenizer = PromptTokenizer(clip, {"<my-dog>": count})
    template = f"{before} {{}} {after}".strip()
    objects, references = tokenizer.fill(template, "<my-dog>"), tokenizer.fill(template, class_words)
    keys = [e.token_key for e in encoders]
    vectors = {e.token_key: torch.zeros(count, e.width) for e in encoders}
    by_hand = PromptByHand(keys, before, vectors, after), PromptByHand(keys, before, class_words, after)
    ours, theirs = ([position for position, _ in prompt.kept()] for prompt in by_hand)
    tokens = [dict(prompt.kept()) for prompt in by_hand]
    pairs = aligned_context(objects, references)
    if len(by_hand[0].chunks[keys[0]]) == len(by_hand[1].chunks[keys[0]]):
        assert sorted(i for i, _ in pairs) == ours and sorted(j for _, j in pairs) == theirs
    assert [tokens[0][i] for i, _ in pairs] == [tokens[1][j] for _, j in pairs]
    words = len([t for t in tokens[0].values() if t < 49406])
    assert len([1 for i, _ in pairs if tokens[0][i] < 49406]) == words
    assert sum(tokens[0][i] == 49406 for i, _ in pairs) == sum(tokens[0][i] == 49407 for i, _ in pairs) >= 1


def test_prompts_that_differ_elsewhere_are_refused(sd15):
    tokenizer = PromptTokenizer(sd15.clip, {"<my-dog>": 1})
    with pytest.raises(ValueError, match="differ in more than the subject"):
        aligned_context(tokenizer.fill("a {} here", "<my-dog>"), tokenizer.fill("a {} over there", "dog"))
