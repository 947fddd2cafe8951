"""Which tokens a U-Net reads: prompts that differ in one factor, and whose outputs are exchanged."""
import pytest
import torch

from miniature import reading
from miniature.diffusion import is_end, with_ends
from miniature.grammar import said
from miniature.network import new_networks


@pytest.fixture(scope="module")
def networks():
    return new_networks()


def test_the_prompts_of_a_pair_differ_in_their_factor_alone():
    for pair in reading.pairs():
        words, ends = vars(said(pair.words)), vars(said(pair.ends))
        factor = "first" if pair.factor == "colors" else pair.factor
        assert {name for name in words if words[name] != ends[name]} == {factor}, pair


def test_every_factor_is_asked_for_both_ways():
    asked = {(pair.factor, pair.words, pair.ends) for pair in reading.pairs()}
    assert {factor for factor, *_ in asked} == set(reading.EXCHANGED)
    assert all((factor, ends, words) in asked for factor, words, ends in asked)


def test_words_are_one_prompts_and_ends_the_others(networks):
    text = networks["text"]
    prompts = ["a photo of a dog on the moon", "a drawing of a red bird"]
    mixed, _ = reading.with_ends_of(networks, prompts, prompts[::-1])
    with torch.no_grad():
        own = text.condition(text.tokens(prompts))[0]
    for row, prompt in enumerate(prompts):
        words = len(prompt.split())  # words of the grammar are one token each
        assert torch.equal(mixed[row, :words + 1], own[row, :words + 1])
        assert torch.equal(mixed[row, words + 1:], own[1 - row, words + 1:])


def test_ends_begin_with_the_first_end_token(networks):
    text = networks["text"]
    ends = is_end(text, text.tokens(["a dog", ""]))
    assert ends[0].tolist() == [False] * 3 + [True] * 74
    assert ends[1].tolist() == [False] + [True] * 76
    ones, zeros = torch.ones(2, 77, 1), torch.zeros(2, 77, 1)
    assert with_ends(ones, zeros, ends).sum(1).flatten().tolist() == [3, 1]


def test_a_vector_that_takes_a_words_place_leaves_the_encoder_as_it_was(networks):
    before = networks["text"].rows.clone()
    assert -1 <= reading.context_kept(networks) < 1
    assert torch.equal(networks["text"].rows, before)
