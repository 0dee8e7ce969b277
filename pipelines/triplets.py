"""Triplets of picture, object picture and caption: which picture shows a sample's object, and whether it is domain.

Source: Taming Encoder, arXiv:2304.02642, section 3.4. Eq. 3, cross-reference: z = (x, o', t) if p < omega, else
(x, o, t), with p ~ U(0, 1) and o' of another picture of the same identity. General pictures, whose object is dropped
(Eq. 4), are told by `is_domain`.

Whether a row is replaced, and by which picture, is a pure function of (seed, position), and so of (seed, epoch, place
in it): the same on any number of workers, and the same after a resume. The other picture comes from the row's own
shuffle window. What is held for that are the identities of the window's samples, never their pictures: those are read
again from the open shard when their turn comes. So memory is bounded by `data.shuffle_buffer` strings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from imprint.errors import ShardError
from imprint.pipelines.samples import Entry
from imprint.pipelines.tar import read_exactly

Place = tuple[int, int]
"""A sample of a window: the number of its shard, and its number within it."""
_STREAM = 3  # of the seeds' words; 0 and 1 are the order's


@dataclass(frozen=True)
class CrossReference:
    """`probability` is omega; `sources` are the domain's numbers; `key` names the identity in a sample's json."""

    probability: float
    sources: tuple[int, ...] = (0,)
    key: str = "identity"

    def of_source(self, source: int) -> CrossReference:
        """What holds for the rows of one source: a general one is never cross-referenced."""
        return self if source in self.sources else CrossReference(0.0, self.sources, self.key)

    def wants(self, seed: int, position: int) -> bool:
        """p < omega at a position of the order of `seed`."""
        return self.probability > 0 and draw(seed, position)[0] < self.probability

    def pick(self, seed: int, position: int, candidates: Sequence[Place]) -> Place | None:
        """One of the candidates, each as likely; None where there are none."""
        return candidates[int(draw(seed, position)[1] * len(candidates))] if candidates else None


def draw(seed: int, position: int) -> tuple[float, float]:
    """Two independent numbers of U[0, 1) that depend on (seed, position) alone."""
    first, second = np.random.SeedSequence([seed, _STREAM, position]).generate_state(2, np.uint64)
    return float(first >> np.uint64(11)) / 2**53, float(second >> np.uint64(11)) / 2**53


class Identities:
    """Which samples of a window show the same object, by the identities in their json."""

    def __init__(self, named: Mapping[Place, tuple[str, str]]) -> None:
        """`named` gives each sample's (identity, key of the sample)."""
        self._groups: dict[str, list[tuple[Place, str]]] = {}
        for place in sorted(named):
            identity, sample = named[place]
            self._groups.setdefault(identity, []).append((place, sample))

    @classmethod
    def of_window(
        cls, window: Mapping[int, tuple[int, Sequence[Entry]]], key: str, max_bytes: int, shards: Mapping[int, str]
    ) -> Identities:
        """Read off the open shards, (descriptor, entries) by number, whose URLs are `shards`.

        A sample without an identity, or whose json cannot be read, stands for nobody; its own turn tells what is wrong.
        """
        named: dict[Place, tuple[str, str]] = {}
        for number, (descriptor, entries) in window.items():
            for index, entry in enumerate(entries):
                identity = _identity(descriptor, entry, key, max_bytes, shards[number])
                if identity is not None:
                    named[number, index] = identity, entry.key
        return cls(named)

    def others(self, document: str, key: str, sample: str) -> list[Place]:
        """Samples of the same identity as a row's json says, but for the row's own, in the order of their shards."""
        identity = _named(document, key)
        return [place for place, other in self._groups.get(identity or "", ()) if other != sample]


def _identity(descriptor: int, entry: Entry, key: str, max_bytes: int, shard: str) -> str | None:
    member = entry.parts.get("json")
    if entry.problem or member is None or member.size > max_bytes:
        return None
    try:
        return _named(read_exactly(descriptor, member.size, member.offset, shard).decode("utf-8"), key)
    except (ShardError, UnicodeDecodeError):
        return None


def _named(document: str, key: str) -> str | None:
    try:
        record = json.loads(document)
    except (ValueError, RecursionError):
        return None
    value = record.get(key) if isinstance(record, dict) else None
    return str(value) if isinstance(value, str | int) and value != "" else None
