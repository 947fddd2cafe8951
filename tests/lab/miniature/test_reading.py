"""Which tokens a U-Net reads: prompts that differ in one factor, and whose outputs are exchanged."""
import pytest
import torch

from miniature import reading
from miniature.diffusion import EMPTIED, EXCHANGED, mix_ends
from miniature.flow_network import new_networks_flow
from miniature.grammar import said
from miniature.network import new_networks, new_networks_xl


@pytest.fixture(scope="module")
def networks(request):
    return getattr(request, "param", new_networks)()


def test_the_prompts_of_a_pair_differ_in_their_factor_alone():
    for pair in reading.pairs():
        words, ends = vars(said(pair.words)), vars(said(pair.ends))
        factor = "first" if pair.factor == "colors" else pair.factor
        assert {name for name in words if words[name] != ends[name]} == {factor}, pair


def test_every_factor_is_asked_for_both_ways():
    asked = {(pair.factor, pair.words, pair.ends) for pair in reading.pairs()}
    assert {factor for factor, *_ in asked} == set(reading.EXCHANGED)
    assert all((factor, ends, words) in asked for factor, words, ends in asked)


@pytest.mark.parametrize("networks", [new_networks, new_networks_xl, new_networks_flow], indirect=True)
def test_words_are_one_prompts_and_ends_the_others(networks):
    text = networks["text"]
    prompts = ["a photo of a dog on the moon", "a drawing of a red bird"]
    own = [text.condition(text.tokens([prompt]))[0][0] for prompt in prompts]
    ends = [text.ends(text.tokens([prompt]))[0] for prompt in prompts]
    mixed = reading.with_ends_of(networks, prompts, prompts[::-1])
    for row, (words, _) in enumerate(mixed):
        count = int((~ends[row]).sum())
        assert torch.equal(words[0, :count], own[row][:count])
        taken = own[1 - row][ends[1 - row]]
        length = words.shape[1] - count
        expected = torch.cat([taken[:1].expand(max(0, length - len(taken)), -1), taken[-min(length, len(taken)):]])
        assert torch.equal(words[0, count:], expected)


def test_ends_begin_with_the_first_end_token(networks):
    text = networks["text"]
    ends = text.ends(text.tokens(["a dog", ""]))
    assert ends[0].tolist() == [False] * 3 + [True] * 74
    assert ends[1].tolist() == [False] + [True] * 76


def test_ends_of_a_chat_are_what_its_template_says_after_the_prompt():
    text = new_networks_flow()["text"]
    ends = text.ends(text.tokens(["a dog on the moon"]))[0].tolist()
    assert ends == [False] * 8 + [True] * 5


def test_a_vector_that_takes_a_words_place_leaves_the_encoder_as_it_was(networks):
    before = networks["text"].rows.clone()
    assert -1 <= reading.context_kept(networks) < 1
    assert torch.equal(networks["text"].rows, before)


@pytest.mark.parametrize("make", [new_networks, new_networks_xl, new_networks_flow])
def test_training_exchanges_ends_and_pooled_vectors_and_no_word(make):
    text = make()["text"]
    prompts = ["a photo of a dog on the moon", "a photo of a red dog in snow"] * 200
    tokens = text.tokens(prompts)
    with torch.no_grad():
        words, vector = text.condition(tokens)
        mixed, mixed_vector = mix_ends(text, (words, vector), tokens)
        empty, empty_vector = text.condition(text.tokens([""]))
    ends = text.ends(tokens)
    assert torch.equal(mixed[~ends], words[~ends])
    shares = [_share_equal(mixed[:, -1], other[:, -1]) for other in (words.roll(1, 0), empty, words)]
    assert shares == pytest.approx([EXCHANGED, EMPTIED, 1 - EXCHANGED - EMPTIED], abs=0.1)
    if vector is not None:
        vectors = [_share_equal(mixed_vector, other) for other in (vector.roll(1, 0), empty_vector, vector)]
        assert vectors == shares


def _share_equal(ones, others):
    return torch.isclose(ones, others, atol=1e-5).all(1).float().mean().item()
