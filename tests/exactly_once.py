"""What a trainer with checkpoints notes down, for the tests that kill it: which samples each step took, on which rank.

All ranks of a step go on together, as the gradients' sum makes them; rank 0 then writes the position from time to time.
What was taken after the last position is done again after a kill, as the weights are.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reading_shards import read

from imprint.pipelines.reading import ReadOptions
from imprint.pipelines.shards import Shard

EVERY = 3  # steps between two checkpoints


class Notes:
    """A folder of step files and the newest position."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def step(self) -> int:
        """The step to go on with."""
        place = self.folder / "position.json"
        return json.loads(place.read_text())["step"] if place.exists() else 0

    def roll_back(self) -> int:
        """Forget the steps after the newest position; says which step comes next."""
        step = self.step()
        for path in self.folder.glob("step-*.json"):
            if int(path.name.split("-")[1]) >= step:
                path.unlink()
        return step

    def take(self, step: int, rank: int, ranks: int, ids: Sequence[tuple[int, str]]) -> None:
        """Note a rank's (position, key) pairs of a step, wait for the other ranks, and on rank 0 write the position."""
        _write(self._place(step, rank, ranks), list(ids))
        while not all(self._place(step, other, ranks).exists() for other in range(ranks)):
            time.sleep(0.002)
        if rank == 0 and (step + 1) % EVERY == 0:
            _write(self.folder / "position.json", {"step": step + 1})

    def all(self) -> list[tuple[int, str]]:
        """All (position, key) pairs that were taken before the newest position, by position."""
        found: list[tuple[int, str]] = []
        for path in self.folder.glob("step-*.json"):
            if int(path.name.split("-")[1]) < self.step():
                found += [(position, key) for position, key in json.loads(path.read_text())]
        return sorted(found)

    def wait_for(self, step: int, patience: float) -> None:
        """Until some rank has taken this step.

        Raises:
            AssertionError: it has not within `patience` seconds.
        """
        deadline = time.monotonic() + patience
        while not list(self.folder.glob(f"step-{step:06d}-*.json")):
            assert time.monotonic() < deadline, "the workers do not go on"
            time.sleep(0.002)

    def _place(self, step: int, rank: int, ranks: int) -> Path:
        return self.folder / f"step-{step:06d}-rank-{rank}-of-{ranks}.json"


def _write(path: Path, content: Any) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.partial")
    temporary.write_text(json.dumps(content))
    os.replace(temporary, path)


def assert_taken_once(taken: Sequence[tuple[int, str]], positions: int) -> None:
    """Every position, and in every epoch every sample, of 150 faces `s-*` and 50 general ones `g-*` at 3 to 1."""
    assert [position for position, _ in taken] == list(range(positions)), "no position twice, none left out"
    for letter, size, share in (("s", 150, 0.75), ("g", 50, 0.25)):
        keys = [key for _, key in taken if key.startswith(letter)]
        assert len(keys) == positions * share
        for epoch in range(len(keys) // size):
            assert Counter(keys[epoch * size : (epoch + 1) * size]) == Counter(
                f"{letter}-{number:04d}" for number in range(size)
            )


def train_rank(
    folder: str, shards: list[Shard], options: ReadOptions, rank: int, ranks: int, batch: int, steps: int
) -> None:
    """One rank of a run in a process of its own: reads its part of each step from the position on."""
    notes, share = Notes(Path(folder)), batch // ranks
    for step in range(notes.step(), steps):
        first = step * batch + rank * share
        rows = read(shards, options, first, first + share)
        notes.take(step, rank, ranks, [(row["__index__"], row["__key__"]) for row in rows])
