"""Confidence intervals, paired differences and ROC areas against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from imprint.evaluation.statistics import area_under_curve, bootstrap_mean, nearest_identity, paired_difference


def test_the_interval_of_a_mean_is_the_normal_one_for_many_subjects() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    found = bootstrap_mean(values)
    half = 1.959964 * values.std() / math.sqrt(len(values))
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_the_interval_of_a_share_is_that_of_the_binomial() -> None:
    # 30 of 100: the bootstrap mean is Binomial(100, 0.3) / 100, whose 2.5 % and 97.5 % quantiles are 0.21 and 0.39.
    found = bootstrap_mean([1.0] * 30 + [0.0] * 70)
    assert (found.low, found.high) == (pytest.approx(0.21, abs=0.011), pytest.approx(0.39, abs=0.011))


def test_equal_values_have_an_interval_of_no_width() -> None:
    found = bootstrap_mean([0.25] * 7)
    assert (found.mean, found.low, found.high, found.count) == (0.25, 0.25, 0.25, 7)


def test_coverage_is_about_what_the_level_says() -> None:
    generator = np.random.default_rng(1)
    hits = 0
    for seed in range(200):
        found = bootstrap_mean(generator.normal(0.0, 1.0, 60), level=0.8, resamples=500, seed=seed)
        hits += found.low <= 0.0 <= found.high
    assert 0.70 <= hits / 200 <= 0.88


def test_a_paired_difference_sees_through_what_subjects_have_in_common() -> None:
    generator = np.random.default_rng(0)
    subject = generator.normal(0, 10, 100)
    first, second = subject + 0.5 + generator.normal(0, 0.1, 100), subject + generator.normal(0, 0.1, 100)
    found = paired_difference(first, second)
    assert found.above(0.4) and found.high < 0.6
    assert not bootstrap_mean(first).above(bootstrap_mean(second).mean)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [[1.0]]])
def test_what_has_no_mean_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="expected one or more finite numbers"):
        bootstrap_mean(values)


def test_a_pair_is_missing() -> None:
    with pytest.raises(ValueError, match="as many of each"):
        paired_difference([1.0, 2.0], [1.0])


def test_the_area_counts_pairs() -> None:
    generator = np.random.default_rng(2)
    positive, negative = generator.integers(0, 6, 40), generator.integers(0, 6, 55)
    wins = (positive[:, None] > negative).sum() + 0.5 * (positive[:, None] == negative).sum()
    assert area_under_curve(positive, negative) == pytest.approx(wins / (40 * 55))


def test_the_area_of_two_normals() -> None:
    generator = np.random.default_rng(3)
    area = area_under_curve(generator.normal(1, 1, 20_000), generator.normal(0, 1, 20_000))
    assert area == pytest.approx(0.5 * (1 + math.erf(1 / 2)), abs=0.01)  # Phi(1 / sqrt 2)


def test_the_nearest_identity() -> None:
    similarity = np.asarray([[0.9, 0.1, 0.2], [0.3, 0.2, 0.1], [0.0, 0.1, 0.8]])
    assert nearest_identity(similarity, np.asarray([0, 1, 2])).tolist() == [True, False, True]
