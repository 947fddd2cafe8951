"""The prompts stay inside the grammar, and methods are not compared on what they were regularized with."""
from __future__ import annotations

import pytest

from miniature.factors import BACKGROUNDS, CLASSES, POSES, PROPS
from miniature.grammar import every_word, said
from miniature.prompts import evaluation_prompts, regularization_prompts

CHECKED = ("pose", "accessory", "background", "relation", "first")


def all_of(by_kind: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    return sum(by_kind.values(), ())


def stated(prompt: str) -> set[str]:
    words = said(prompt.format("<it>"))
    return {name for name in CHECKED if getattr(words, name) is not None}


@pytest.mark.parametrize("kind", CLASSES)
def test_regularization_prompts_name_one_factor(kind):
    prompts = regularization_prompts(kind)
    for group, count in (("background", 1), ("action", 1), ("outfit", 1), ("object", 1), ("style", 0)):
        assert all(len(stated(prompt)) == count and prompt.count("{}") == 1 for prompt in prompts[group]), group
    assert {said(p).background for p in prompts["background"]} == set(BACKGROUNDS)
    assert {said(p).pose for p in prompts["action"]} == set(POSES)
    assert {said(p).second_kind for p in prompts["object"]} == set(PROPS)


@pytest.mark.parametrize("kind", CLASSES)
def test_evaluation_prompts_join_two_factors_and_are_kept_apart(kind):
    prompts = all_of(evaluation_prompts(kind))
    assert len(set(prompts)) == 24
    assert all(len(stated(prompt)) == 2 for prompt in prompts)
    assert {said(p).background for p in prompts} == {*BACKGROUNDS, None}
    known = {p for group in regularization_prompts(kind).values() for p in group}
    assert not known & set(prompts)


def test_every_word_has_a_trained_row():
    words = set(every_word().split())
    for kind in CLASSES:
        for prompt in all_of(evaluation_prompts(kind)) + all_of(regularization_prompts(kind)):
            assert set(prompt.format(kind).split()) <= words, prompt
