"""Contenders beside one another: estimates, who is on the Pareto front, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float

from imprint.errors import DataError
from imprint.evaluation.statistics import Estimate, bootstrap_mean, paired_difference

IDENTITY, PROMPT, SECONDS = "identity", "prompt", "seconds"

LABELS = {
    "identity": "identity", "identity_plain": "identity, plain prompt", "elsewhere": "likeness with somebody else",
    "recognized": "recognized", "prompt": "prompt obeyed", "kept": "attributes kept", "copies": "copies",
    "diversity": "diversity", "pair": "both in one picture",
    "PRES": "PRES of the class", "DIV": "DIV of the class", "CLIP-I": "CLIP-I", "CLIP-T": "CLIP-T", "DINO": "DINO",
    "seconds": "seconds", "steps": "steps", "memory_mib": "memory, MiB", "kilobytes": "size, kB",
    "draw_seconds": "seconds a picture",
}  # fmt: skip
"""Of the metrics that tables show, in their order."""

SHARES = ("recognized", "kept", "copies")
"""Metrics that are shares of one. The prompt score may be CLIP-T, which is not."""

COSTS = ("seconds", "steps", "memory_mib", "kilobytes", "draw_seconds")


@dataclass(frozen=True, eq=False)
class Entry:
    """One contender: arrays with a value for each of `subjects`, NaN where there is none, by metric.

    `kinds` are the same by kind of prompt, then by metric. `facts` are single numbers and words, `run` the folder it
    came from, and `links` what can be followed, by what it is called.
    """

    name: str
    label: str
    subjects: tuple[str, ...]
    scores: Mapping[str, Float[np.ndarray, "subjects"]]
    kinds: Mapping[str, Mapping[str, Float[np.ndarray, "subjects"]]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    run: str = ""
    links: Mapping[str, str] = field(default_factory=dict)

    def estimate(self, metric: str) -> Estimate | None:
        """The mean over the subjects that have a value; None where none has."""
        return estimate(self.scores.get(metric))


def estimate(values: Float[np.ndarray, "subjects"] | None) -> Estimate | None:
    """A mean with its interval over what is finite; None where nothing is."""
    if values is None:
        return None
    finite = np.asarray(values, np.float64)[np.isfinite(values)]
    return _mean(tuple(finite.tolist())) if len(finite) else None


@lru_cache(maxsize=4096)
def _mean(values: tuple[float, ...]) -> Estimate:
    """Tables and plots ask for the same ones again."""
    return bootstrap_mean(values)


@dataclass(frozen=True)
class Difference:
    """`first` minus `second`, subject by subject."""

    first: str
    second: str
    metric: str
    estimate: Estimate

    @property
    def shown(self) -> str:
        """Whether the interval leaves no doubt of the direction."""
        if self.estimate.low > 0:
            return "higher"
        return "lower" if self.estimate.high < 0 else "not shown"


@dataclass(frozen=True)
class Comparison:
    """Entries by their names; `floor` and `ceiling` are identity scores of real pictures, where they are known.

    `notes` say what keeps entries of several runs from being compared.
    """

    entries: tuple[Entry, ...]
    floor: float | None = None
    ceiling: float | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        entries: Sequence[Entry],
        *,
        floor: float | None = None,
        ceiling: float | None = None,
        notes: Sequence[str] = (),
    ) -> Comparison:
        """
        Raises:
            DataError: there is none, or two have one name.
        """
        names = [entry.name for entry in entries]
        if not entries or len(set(names)) < len(names):
            raise DataError(f"comparing: got {', '.join(names) or 'nothing'}; expected entries of different names")
        return cls(tuple(entries), floor, ceiling, tuple(notes))

    def of_equal_subjects(self) -> bool:
        """Whether all entries are of the same ones, so that their means can be read beside one another."""
        return len({frozenset(entry.subjects) for entry in self.entries}) == 1

    def metrics(self) -> list[str]:
        """Those that some entry has, in the order of tables."""
        return [
            name for name in LABELS
            if any(name in entry.scores and np.isfinite(entry.scores[name]).any() for entry in self.entries)
        ]  # fmt: skip

    def pareto(self, horizontal: str = PROMPT, vertical: str = IDENTITY) -> list[str]:
        """Names of those that no other beats in both scores, by means; from the left to the right of a plot.

        Two are compared over the subjects that both have, so that nobody is beaten by easier ones.
        """
        points = {}
        for entry in self.entries:
            x, y = entry.estimate(horizontal), entry.estimate(vertical)
            if x is not None and y is not None:
                points[entry.name] = (x.mean, y.mean)
        chosen = [entry for entry in self.entries if entry.name in points]

        def beats(one: Entry, other: Entry) -> bool:
            wide, high = (_mean_difference(one, other, metric) for metric in (horizontal, vertical))
            return wide is not None and high is not None and wide >= 0 and high >= 0 and (wide, high) != (0, 0)

        front = [one.name for one in chosen if not any(beats(other, one) for other in chosen if other is not one)]
        return sorted(front, key=lambda name: points[name])

    def differences(self, metric: str, against: str | None = None) -> list[Difference]:
        """Paired differences over the subjects that both have: all pairs, or of everyone `against` one.

        Raises:
            DataError: there is no entry of that name.
        """
        names = [entry.name for entry in self.entries]
        if against is not None and against not in names:
            raise DataError(
                f"comparing against {against!r}: there is no such entry, expected one of {', '.join(names)}"
            )
        found = []
        for place, first in enumerate(self.entries):
            for second in self.entries if against else self.entries[place + 1 :]:
                if first is second or (against and second.name != against):
                    continue
                pair = paired(first, second, metric)
                if pair is not None:
                    found.append(Difference(first.name, second.name, metric, pair))
        return found


def paired(first: Entry, second: Entry, metric: str) -> Estimate | None:
    """The mean difference over the subjects that both have a value of; None where they share none."""
    pairs = _pairs(first, second, metric)
    return paired_difference(*zip(*pairs, strict=True)) if pairs else None


def _mean_difference(first: Entry, second: Entry, metric: str) -> float | None:
    """The same without an interval, which takes a thousand times as long."""
    pairs = _pairs(first, second, metric)
    return float(np.mean([mine for mine, _ in pairs]) - np.mean([theirs for _, theirs in pairs])) if pairs else None


def _pairs(first: Entry, second: Entry, metric: str) -> list[tuple[float, float]]:
    if metric not in first.scores or metric not in second.scores:
        return []
    theirs = dict(zip(second.subjects, second.scores[metric], strict=True))
    return [
        (mine, theirs[subject])
        for subject, mine in zip(first.subjects, first.scores[metric], strict=True)
        if subject in theirs and np.isfinite(mine) and np.isfinite(theirs[subject])
    ]
