"""Reading whole shards in one process, for the tests that look at what comes out."""

from __future__ import annotations

from pathlib import Path

from imprint.pipelines.mixing import Mix, plan_mix
from imprint.pipelines.reading import ReadOptions, Row, read_rows
from imprint.pipelines.shards import Shard, counted, find_shards


def read(folder: Path | list[Shard], options: ReadOptions, start: int = 0, stop: int | None = None) -> list[Row]:
    """Rows [start, stop) of the order of a folder's shards, by default one epoch."""
    shards = counted(folder if isinstance(folder, list) else find_shards([str(folder)]))
    counts = [shard.samples or 0 for shard in shards]
    parts = plan_mix(
        counts, [shard.source for shard in shards], Mix(options.weights), seed=options.seed,
        shuffle_buffer=options.shuffle_buffer, start=start, stop=sum(counts) if stop is None else stop,
    )  # fmt: skip
    found = [read_rows({n: shards[n] for n in p.shards}, p, options, total=sum(counts)) for p in parts]
    return [row for rows in found for row in rows]


def keys(rows: list[Row]) -> list[str]:
    return [row["__key__"] for row in rows]
