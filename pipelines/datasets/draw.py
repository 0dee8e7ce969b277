"""Random choices that stay the same on every machine and with every version of Python and NumPy.

Only `random.Random.random()` is promised never to change (https://docs.python.org/3/library/random.html,
"Notes on Reproducibility"), so every choice is made from it alone, and a generator is named by the words of
what it is for instead of being passed from one sample to the next.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """A stream of choices that is a pure function of `purpose`, as in `Draw(seed, "train", identity, variant)`."""

    def __init__(self, *purpose: object) -> None:
        self._random = random.Random("/".join(str(part) for part in purpose))

    def unit(self) -> float:
        """A number in [0, 1)."""
        return self._random.random()

    def chance(self, probability: float) -> bool:
        """True with `probability`."""
        return self.unit() < probability

    def between(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self.unit()

    def integer(self, low: int, high: int) -> int:
        """A whole number in low..high, both included."""
        return low + int(self.unit() * (high - low + 1))

    def choice(self, options: Sequence[T]) -> T:
        """One of `options`, all alike."""
        return options[int(self.unit() * len(options))]

    def weighted(self, weights: Mapping[T, float]) -> T:
        """One key of `weights`, in proportion to its weight."""
        point = self.unit() * sum(weights.values())
        for option, weight in weights.items():
            point -= weight
            if point < 0:
                return option
        return option

    def pair(self, options: Sequence[T]) -> tuple[T, T]:
        """Two different members of `options`, in random order."""
        first = int(self.unit() * len(options))
        second = int(self.unit() * (len(options) - 1))
        return options[first], options[second + (second >= first)]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """`items` in random order (Fisher-Yates)."""
        result = list(items)
        for last in range(len(result) - 1, 0, -1):
            other = int(self.unit() * (last + 1))
            result[last], result[other] = result[other], result[last]
        return result
