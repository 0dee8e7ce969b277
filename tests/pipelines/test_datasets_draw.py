"""Choices are a pure function of their purpose, and fair."""

from __future__ import annotations

import random

import pytest

from imprint.pipelines.datasets.draw import Draw


def test_a_purpose_gives_one_stream() -> None:
    assert [Draw(1, "a").unit() for _ in range(3)] == [random.Random("1/a").random()] * 3
    assert Draw(1, "a").unit() != Draw(1, "b").unit()


def test_choices_cover_their_options_evenly() -> None:
    draw = Draw("even")
    counts = [0] * 5
    for _ in range(5000):
        counts[draw.choice(range(5))] += 1
    assert min(counts) > 850 and max(counts) < 1150
    assert {draw.integer(2, 4) for _ in range(100)} == {2, 3, 4}


def test_weights_are_proportions_and_zero_is_never() -> None:
    draw = Draw("weights")
    drawn = [draw.weighted({"a": 3.0, "never": 0.0, "b": 1.0}) for _ in range(4000)]
    assert drawn.count("a") / 4000 == pytest.approx(0.75, abs=0.03)
    assert "never" not in drawn


def test_a_pair_is_of_two_and_a_shuffle_loses_nothing() -> None:
    draw = Draw("pairs")
    pairs = {draw.pair("abc") for _ in range(200)}
    assert pairs == {(x, y) for x in "abc" for y in "abc" if x != y}
    orders = {tuple(draw.shuffled("abc")) for _ in range(200)}
    assert len(orders) == 6 and all(sorted(order) == ["a", "b", "c"] for order in orders)
