"""The concepts that a sampler has in memory: loaded once, the longest unused dropped first."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection

from imprint.methods.base import Learned
from imprint.tuning import Concept

Load = Callable[[str], Awaitable[Concept]]


class ConceptCache:
    """By place, bounded by number and by bytes; requests for one that is being loaded wait for that load."""

    def __init__(self, load: Load, *, most: int, most_bytes: int) -> None:
        self._load, self.most, self.most_bytes = load, most, most_bytes
        self._held: OrderedDict[str, Concept] = OrderedDict()
        self._loading: dict[str, asyncio.Task[Concept]] = {}
        self.loads = 0

    async def get(self, place: str) -> Concept:
        """
        Raises:
            Problem: 404, the store does not have it.
        """
        if place in self._held:
            self._held.move_to_end(place)
            return self._held[place]
        if place not in self._loading:
            task = asyncio.ensure_future(self._load(place))
            self._loading[place] = task
            task.add_done_callback(lambda done: self._loading.pop(place, None))
        concept = await asyncio.shield(self._loading[place])
        if place not in self._held:
            self.loads += 1
            self._held[place] = concept
            self._trim()
        return concept

    def _trim(self) -> None:
        while len(self._held) > 1 and (len(self._held) > self.most or self.size > self.most_bytes):
            self._held.popitem(last=False)

    def drop(self, places: Collection[str]) -> None:
        """Those that are gone from the store."""
        for place in places:
            self._held.pop(place, None)

    @property
    def places(self) -> list[str]:
        return list(self._held)

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(_bytes(concept.learned) for concept in self._held.values())


def _bytes(learned: Learned) -> int:
    return sum(value.numel() * value.element_size() for value in learned.tensors.values())
