"""Words found among a conditioning's tokens, against the tokenizer that made them."""
from __future__ import annotations

import pytest

from personalize.nodes.attention.words import words_of
from personalize.nodes.text.concept import Concept
from personalize.nodes.text.layout import layout_in, parse_words
from personalize.nodes.text.nodes_prompts import PersonalizeEncodeWithSpans
from support.layouts import spans_in
from support.prompts_by_hand import positions_by_hand

PROMPTS = ("a photo of a dog in a red hat", "Dog, (dog:1.3) and hotdogs; DOGS!",
           "a snufflepuppington's 3d photo-op in 2024", "a " * 90 + "dog sits by a dog", "",
           "Ein Café-Hund 🐶 läuft, 犬が走る")
NAMES = ("dog", "red hat", "dogs", "Hotdogs", "snufflepuppington", "snufflepuppington's", "3d", "photo-op", "2024",
         "a dog", "dog dog", "hat", "café", "Café-Hund", "🐶", "hund 🐶", "läuft", "犬が走る", "犬", "cat", "'", "")


def with_spans(clip, text, words=""):
    return PersonalizeEncodeWithSpans.execute(clip, text, words)[0]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_words_among_tokens_are_those_the_tokenizer_finds(sd15, prompt):
    layout = layout_in(with_spans(sd15.clip, prompt)[0][1])
    assert {name: layout.find(name) for name in NAMES} == {
        name: positions_by_hand(sd15.clip, prompt, name) for name in NAMES}


def test_words_need_not_be_listed_when_the_conditioning_holds_its_tokens(sd15):
    conditioning, prompt = with_spans(sd15.clip, PROMPTS[0], "red hat"), PROMPTS[0]
    options = {**conditioning[0][1], "cross_attn": conditioning[0][0]}
    assert words_of(["dog", "cat"]).of(options) == {"dog": (5,)}
    assert words_of([]).of(options) == {"red hat": (8, 9)} == spans_in(options)
    assert words_of(["dog"], sd15.clip, prompt).of({"cross_attn": conditioning[0][0]}) == {"dog": (5,)}


def test_positions_of_a_prompt_hold_for_conditionings_of_its_length(sd15):
    long = sd15.clip.encode_from_tokens_scheduled(sd15.clip.tokenize(PROMPTS[3]))[0][0]
    assert long.shape[1] == 154
    assert words_of(["dog"], sd15.clip, PROMPTS[0]).of({"cross_attn": long}) == {}
    assert words_of(["dog"], sd15.clip, PROMPTS[3]).of({"cross_attn": long}) == {
        "dog": positions_by_hand(sd15.clip, PROMPTS[3], "dog")}


def test_what_is_wrong_with_words_is_said_of_the_input_they_come_from(sd15):
    with pytest.raises(ValueError, match="^words is empty and the prompt 'a cat' holds no placeholder"):
        words_of([], sd15.clip, "a cat")
    with pytest.raises(ValueError, match="^The word 'dog' of words is not in the prompt 'a cat'"):
        words_of(["dog"], sd15.clip, "a cat")


def test_words_are_parted_by_commas_and_lines():
    assert parse_words("dog, red hat\n<my-dog>,\n\n dog ,") == ("dog", "red hat", "<my-dog>")
    assert parse_words(" \n,") == ()


def test_a_placeholder_is_named_in_any_capitals(sd15):
    concept = Concept("<My-Dog>", "dog", "dog", 2)
    conditioning = PersonalizeEncodeWithSpans.execute(sd15.clip, "a <my-dog> runs", "", (concept,))[0]
    options = {**conditioning[0][1], "cross_attn": conditioning[0][0]}
    assert words_of(["<my-dog>", "Runs"]).of(options) == {"<my-dog>": (2, 3), "Runs": (4,)}
    assert words_of([]).of(options)["<My-Dog>"] == (2, 3)
