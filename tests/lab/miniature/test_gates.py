"""A gate that is missed is named with its figure, and each can be missed alone."""
from __future__ import annotations

import random

import pytest

from miniature.diffusion_training import by_number_of_factors
from miniature.factors import sample_identity, sample_scene
from miniature.gates import AT_LEAST, AT_MOST, missed
from miniature.grammar import caption, said
from miniature.oracle import CHOICES, COLOR_NAMES, Judgement, truth

PASSED = {**dict.fromkeys(AT_LEAST, 1.0), **dict.fromkeys(AT_MOST, 0.0)}


def test_all_gates_can_be_passed():
    assert missed(PASSED) == []


@pytest.mark.parametrize("name", AT_LEAST)
def test_too_little_is_said_with_its_figure(name):
    assert missed({**PASSED, name: AT_LEAST[name] - 0.01}) == [
        f"{name} {AT_LEAST[name] - 0.01:.2f}, not {AT_LEAST[name]:.2f}"]


def test_an_encoder_that_nothing_disturbs_is_said():
    assert missed({**PASSED, "context_kept": 0.97}) == ["context_kept 0.97, not 0.90"]


class Oracle:
    """Says what the scenes are, pictures or not."""

    def __init__(self, scenes):
        self.scenes = scenes

    def judge(self, pictures):
        """As the miniature's oracle."""
        judged = []
        for scene in self.scenes:
            labels = truth([scene])
            seen = {name: options[int(labels[name][0])] for name, options in CHOICES.items()}
            colors = frozenset(name for name, flag in zip(COLOR_NAMES, labels["colors"][0].tolist()) if flag == 1)
            judged.append(Judgement(seen, colors, None, None))
        return judged


def test_hard_prompts_are_counted_apart():
    rng = random.Random(3)
    scenes = [sample_scene(rng, "all", sample_identity(rng, basic=True)) for _ in range(60)]
    prompts = [caption(scene, rng) for scene in scenes]
    assert by_number_of_factors(Oracle(scenes), prompts, None) == {"one_to_three": 1.0, "four_to_six": 1.0}
    others = scenes[1:] + scenes[:1]
    found = by_number_of_factors(Oracle(others), prompts, None)
    verdicts = [list(judged.agrees(said(prompt)).values())
                for prompt, judged in zip(prompts, Oracle(others).judge(None), strict=True)]
    for name, is_few in (("one_to_three", True), ("four_to_six", False)):
        rights = [right for verdict in verdicts if (len(verdict) <= 3) == is_few for right in verdict]
        assert found[name] == pytest.approx(sum(rights) / len(rights)) and found[name] < 0.8
