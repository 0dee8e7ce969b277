"""A worker's stream that begins before the worker needs it."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event
from typing import Any

import numpy as np
import pytest

from imprint.errors import ShardError
from imprint.jobs.early_stream import EarlyStream


class Source:
    """What of Ray Data's iterator is asked for; it notes when the first batch is made."""

    def __init__(self, batches: int, error: Exception | None = None) -> None:
        self.batches, self.error, self.began = batches, error, Event()

    def iter_batches(self, **options: Any) -> Iterator[dict[str, np.ndarray]]:
        assert options == {"batch_size": 4, "prefetch_batches": 2, "batch_format": "numpy"}
        self.began.set()
        for number in range(self.batches):
            yield {"__index__": np.arange(4 * number, 4 * number + 4)}
        if self.error:
            raise self.error


def test_the_first_batch_is_fetched_before_anyone_asks() -> None:
    source = Source(3)
    stream = EarlyStream(source, 4, 2)  # type: ignore[arg-type]
    assert source.began.wait(10)
    assert [batch["__index__"][0] for batch in stream] == [0, 4, 8]


def test_an_empty_stream_ends_at_once() -> None:
    assert list(EarlyStream(Source(0), 4, 2)) == []  # type: ignore[arg-type]


@pytest.mark.parametrize("batches", [0, 2])
def test_an_error_comes_where_the_batch_is_asked_for(batches: int) -> None:
    stream = iter(EarlyStream(Source(batches, ShardError("cut")), 4, 2))  # type: ignore[arg-type]
    for _ in range(batches):
        next(stream)
    with pytest.raises(ShardError, match="cut"):
        next(stream)
