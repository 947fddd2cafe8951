"""Intervals hold the truth as often as they say, for techniques that move all subjects, half of them, or a few."""
import numpy as np
import pytest

from miniature.intervals import CLAIM_SUBJECTS, Interval, interval, limits

TABLES = 1500


def all_move(draw, subjects):
    return draw.normal(0, 1, (TABLES, subjects)), 0


def half_move(draw, subjects):
    values = draw.normal(0, 0.05, (TABLES, subjects))
    values[:, ::2] = draw.exponential(1, values[:, ::2].shape)
    return values, 0.5


def few_move(draw, subjects):
    moves = draw.random((TABLES, subjects)) < 0.3
    return np.where(moves, draw.normal(1, 0.3, moves.shape), draw.normal(0, 0.05, moves.shape)), 0.3


def covered(ends, truth):
    low, high = ends
    return float(((low <= truth) & (truth <= high)).mean())


def percentile_bootstrap(values):
    chosen = np.random.default_rng(0).integers(0, values.shape[1], (800, values.shape[1]))
    means = np.sort(values[:, chosen].mean(2), 1)
    return means[:, 20], means[:, 779]


@pytest.mark.parametrize("move", [all_move, half_move, few_move])
def test_twelve_subjects_are_covered_and_the_percentile_bootstrap_falls_short(move):
    values, truth = move(np.random.default_rng(1), 12)
    assert covered(limits(values), truth) >= 0.94
    assert covered(percentile_bootstrap(values), truth) < 0.94


def test_eight_subjects_miss_those_that_move_too_often_for_any_interval():
    values, truth = few_move(np.random.default_rng(1), 8)
    none_moves = float((values < 0.5).all(1).mean())
    assert none_moves == pytest.approx(0.7 ** 8, abs=0.03)
    assert covered(limits(values), truth) <= 1 - none_moves
    assert CLAIM_SUBJECTS == 12
    with pytest.raises(ValueError, match="at least 12"):
        interval({str(subject): [1.0] for subject in range(8)})


def test_subjects_count_alike_however_many_pictures_they_have():
    values = {str(subject): [float(subject)] * (1 + subject) for subject in range(12)}
    found = interval(values)
    assert found.mean == pytest.approx(5.5) and found.low < 5.5 < found.high


def test_what_is_the_same_for_all_subjects_is_sure():
    found = interval({str(subject): [0.25, 0.25] for subject in range(12)})
    assert found == Interval(0.25, 0.25, 0.25) and found.excludes_zero
    assert not Interval(0.1, -0.1, 0.3).excludes_zero and not Interval(0.0, 0.0, 0.0).excludes_zero
