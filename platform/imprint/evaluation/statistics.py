"""Means with confidence intervals, paired comparisons, and how well a score tells same from different."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over `count` subjects with its confidence interval."""

    mean: float
    low: float
    high: float
    count: int

    def above(self, value: float) -> bool:
        """The whole interval lies above `value`."""
        return self.low > value


def bootstrap_mean(
    values: Sequence[float] | Float[np.ndarray, "n"],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """The mean with its percentile bootstrap interval; subjects are what is drawn again.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, section 13.3.

    Raises:
        ValueError: there are no values, or one is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise ValueError(f"bootstrap of values of shape {array.shape}: expected one or more finite numbers")
    generator = np.random.default_rng(seed)
    means = array[generator.integers(0, len(array), (resamples, len(array)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(array.mean()), float(low), float(high), len(array))


def paired_difference(
    first: Sequence[float] | Float[np.ndarray, "n"],
    second: Sequence[float] | Float[np.ndarray, "n"],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """The mean of `first` - `second` subject by subject; an interval above 0 says that `first` is the better one.

    Raises:
        ValueError: the two do not have one value for each subject.
    """
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.shape != two.shape:
        raise ValueError(f"paired difference: got {one.shape} and {two.shape} values, expected as many of each")
    return bootstrap_mean(one - two, level=level, resamples=resamples, seed=seed)


def area_under_curve(positive: Sequence[float] | np.ndarray, negative: Sequence[float] | np.ndarray) -> float:
    """The chance that a positive scores above a negative, ties counting half: the area under the ROC curve.

    By ranks, as in the Mann-Whitney U statistic.

    Raises:
        ValueError: either side is empty.
    """
    one, two = np.asarray(positive, dtype=np.float64), np.asarray(negative, dtype=np.float64)
    if not len(one) or not len(two):
        raise ValueError("area under the curve: expected positives and negatives")
    values, inverse, counts = np.unique(np.concatenate([one, two]), return_inverse=True, return_counts=True)
    assert len(values) == len(counts)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[: len(one)].sum() - len(one) * (len(one) + 1) / 2) / (len(one) * len(two)))


def nearest_identity(similarity: Float[np.ndarray, "n identities"], own: Int[np.ndarray, "n"]) -> np.ndarray:
    """For each row whether its own identity is the most similar of all, booleans [n]."""
    return similarity.argmax(axis=1) == np.asarray(own)
