"""Small shards made in the test, whole and broken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from small_shards import write_shards

from imprint.pipelines.writer import Sample

MakeShards = Callable[..., Path]


@pytest.fixture
def make_shards(tmp_path: Path) -> MakeShards:
    """Write a folder of shards with a manifest; `change` may alter a sample by its number."""

    def make(counts: list[int], change: Callable[[int, Sample], Sample] | None = None) -> Path:
        return write_shards(tmp_path / "shards", counts, change)

    return make
