"""Reads the rows of a slice of the order from its shards: the reader without Ray."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np
from jaxtyping import UInt8

from imprint.errors import DataError, SampleError, ShardError
from imprint.pipelines.decode import decode_sample
from imprint.pipelines.order import Slice, window_order
from imprint.pipelines.quarantine import Quarantine
from imprint.pipelines.samples import Entry, group_members, read_parts
from imprint.pipelines.shards import Shard, open_shard
from imprint.pipelines.tar import iter_members

MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class ReadOptions:
    """How samples are read.

    `image_size` is a side in px or None (as they are). `on_bad` says what becomes of the place of a quarantined
    sample: "drop" leaves it out; "substitute" gives it to the nearest good sample of its window, earlier ones first,
    so that batch boundaries and positions stay what the order says.
    """

    seed: int = 0
    shuffle_buffer: int = 0
    image_size: int | None = None
    on_bad: Literal["drop", "substitute"] = "drop"
    max_member_bytes: int = 64 * MEBIBYTE
    max_pixels: int = 64_000_000
    max_bad_share: float = 0.01
    quarantine: str | None = None


class Row(TypedDict):
    """One sample. `mask` is all zero where `has_mask` is false; `__index__` is its position in the run."""

    __key__: str
    __shard__: str
    __index__: int
    image: UInt8[np.ndarray, "h w 3"]
    mask: UInt8[np.ndarray, "h w"]
    has_mask: bool
    caption: str
    json: str


def read_slice(shards: Mapping[int, Shard], part: Slice, options: ReadOptions, *, total: int) -> Iterator[Row]:
    """The rows of a slice in their order; memory holds one sample at a time beside the shards' tables of contents.

    `shards` gives the slice's shards by number; `total` is the number of samples in the whole data set.

    Raises:
        ShardError: a shard is missing, cut, or holds another number of samples than its manifest says.
        DataError: too many samples are bad.
    """
    counts = {number: shard.samples or 0 for number, shard in shards.items()}
    order = window_order(counts, part, seed=options.seed, shuffle_buffer=options.shuffle_buffer)
    quarantine = Quarantine(options.quarantine, total=total, max_share=options.max_bad_share)
    with ExitStack() as stack:
        window = _Window(shards, options, quarantine)
        for number in part.shards:
            window.add(number, stack.enter_context(open_shard(shards[number])))
        for place in range(part.first, part.last):
            row = window.read(*order[place])
            if row is None and options.on_bad == "substitute":
                row = _nearest_good(window, order, place)
            if row is not None:
                row["__index__"] = part.index + place - part.first
                yield row
        quarantine.close()


class _Window:
    """The open shards of a window and their tables of contents."""

    def __init__(self, shards: Mapping[int, Shard], options: ReadOptions, quarantine: Quarantine) -> None:
        self.shards, self.options, self.quarantine = shards, options, quarantine
        self.open: dict[int, tuple[int, list[Entry]]] = {}

    def add(self, number: int, descriptor: int) -> None:
        shard = self.shards[number]
        entries = list(group_members(iter_members(descriptor, shard.url)))
        if len(entries) != shard.samples:
            raise ShardError(
                f"reading a shard: it holds {len(entries)} samples and its manifest says {shard.samples}, so it was "
                "cut or replaced; copy it again or write the manifest anew",
                shard=shard.url,
            )
        self.open[number] = descriptor, entries

    def read(self, number: int, sample: int) -> Row | None:
        """A decoded sample, or None when it is bad (and now in quarantine)."""
        descriptor, entries = self.open[int(number)]
        entry, url = entries[int(sample)], self.shards[int(number)].url
        try:
            parts = read_parts(descriptor, entry, self.options.max_member_bytes)
            decoded = decode_sample(parts, size=self.options.image_size, max_pixels=self.options.max_pixels)
        except SampleError as error:
            self.quarantine.add(url, entry.key, entry.offset, error)
            return None
        mask = decoded["mask"]
        return {
            "__key__": entry.key, "__shard__": url, "__index__": 0, "image": decoded["image"],
            "mask": np.zeros(decoded["image"].shape[:2], np.uint8) if mask is None else mask,
            "has_mask": mask is not None, "caption": decoded["caption"], "json": decoded["json"],
        }  # fmt: skip


def _nearest_good(window: _Window, order: np.ndarray, place: int) -> Row:
    for other in [*range(place - 1, -1, -1), *range(place + 1, len(order))]:
        row = window.read(*order[other])
        if row is not None:
            return row
    raise DataError(
        f"reading samples: all {len(order)} samples of {len(window.open)} shards are bad; check what wrote them",
        shard=window.shards[next(iter(window.open))].url,
    )
