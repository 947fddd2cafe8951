"""The prompts stay inside the grammar, and methods are not compared on what they were regularized with."""
from __future__ import annotations

import pytest

from miniature.factors import CLASSES
from miniature.grammar import every_word, said
from miniature.prompts import (
    KNOWN_PLACES,
    KNOWN_POSES,
    KNOWN_PROPS,
    NEW_PLACES,
    NEW_POSES,
    NEW_PROPS,
    NEW_WORN,
    evaluation_prompts,
    hard_prompts,
    regularization_prompts,
    rich_prompts,
)

CHECKED = ("pose", "accessory", "background", "relation", "first")
APART = ("pose", "accessory", "background", "second_kind")


def all_of(by_kind: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    return sum(by_kind.values(), ())


def stated(prompt: str, among: tuple[str, ...] = CHECKED) -> set[tuple[str, str]]:
    words = said(prompt.format("<it>"))
    return {(name, getattr(words, name)) for name in among if getattr(words, name) is not None}


@pytest.mark.parametrize("kind", CLASSES)
def test_regularization_prompts_name_one_factor(kind):
    prompts = regularization_prompts(kind)
    for group, count in (("background", 1), ("action", 1), ("outfit", 1), ("object", 1), ("style", 0)):
        assert all(len(stated(prompt)) == count and prompt.count("{}") == 1 for prompt in prompts[group]), group
    assert {said(p).background for p in prompts["background"]} == set(KNOWN_PLACES)
    assert {said(p).pose for p in prompts["action"]} == set(KNOWN_POSES)
    assert {said(p).second_kind for p in prompts["object"]} == set(KNOWN_PROPS)


@pytest.mark.parametrize("kind", CLASSES)
def test_rich_prompts_join_what_the_regularization_names(kind):
    rich, named = rich_prompts(kind), all_of(regularization_prompts(kind))
    assert len(set(rich)) == len(rich) > 1000 and all(prompt.count("{}") == 1 for prompt in rich)
    assert {len(stated(prompt, APART)) for prompt in rich} == {2, 3, 4}
    assert {fact for prompt in rich for fact in stated(prompt)} == {fact for prompt in named for fact in stated(prompt)}


@pytest.mark.parametrize("kind", CLASSES)
def test_evaluation_prompts_join_two_factors(kind):
    prompts = all_of(evaluation_prompts(kind))
    assert len(set(prompts)) == 24
    assert all(len(stated(prompt)) == 2 for prompt in prompts)
    assert {said(p).background for p in prompts} == {*NEW_PLACES, None}


@pytest.mark.parametrize("kind", CLASSES)
def test_hard_prompts_ask_for_as_many_factors_as_they_say(kind):
    prompts = hard_prompts(kind)
    for name, count in (("three", 3), ("four", 4), ("five", 5), ("six", 6)):
        assert len(set(prompts[name])) == 6
        for prompt in prompts[name]:
            words = said(prompt.format(kind))
            assert sum(value is not None for value in vars(words).values()) == count, prompt
    assert {value for prompt in all_of(prompts) for _, value in stated(prompt, APART)} == {
        *NEW_PLACES, *NEW_POSES, *NEW_WORN, *NEW_PROPS}


@pytest.mark.parametrize("kind", CLASSES)
def test_nothing_that_methods_are_regularized_with_is_asked_for(kind):
    seen = {fact for prompt in all_of(regularization_prompts(kind)) for fact in stated(prompt, APART)}
    for prompts in (evaluation_prompts(kind), hard_prompts(kind)):
        assert not seen & {fact for prompt in all_of(prompts) for fact in stated(prompt, APART)}


def test_every_word_has_a_trained_row():
    words = set(every_word().split())
    for kind in CLASSES:
        for prompts in (evaluation_prompts(kind), hard_prompts(kind), regularization_prompts(kind)):
            for prompt in all_of(prompts):
                assert set(prompt.format(kind).split()) <= words, prompt
