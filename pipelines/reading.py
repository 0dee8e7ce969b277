"""Reads the rows of a slice of the order from its shards: the reader without Ray."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict

import numpy as np
from jaxtyping import Int32, UInt8

from imprint.errors import DataError, SampleError, ShardError
from imprint.pipelines.decode import Room, decode_sample
from imprint.pipelines.mixing import Mix, MixedSlice, source_buffer, source_seed
from imprint.pipelines.order import Slice, plan, window_order
from imprint.pipelines.quarantine import Quarantine
from imprint.pipelines.samples import MASKS, Entry, group_members, is_readable, read_parts
from imprint.pipelines.shards import Shard, open_shard
from imprint.pipelines.storage import DEFAULT_RETRY, Retry
from imprint.pipelines.tar import iter_members
from imprint.pipelines.triplets import CrossReference, Identities

MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class ReadOptions:
    """How samples are read.

    `image_size` is a side in px or None (as they are). `on_bad` says what becomes of the place of a quarantined
    sample: "drop" leaves it out; "substitute" gives it to the nearest good sample of its window, earlier ones first,
    so that batch boundaries and positions stay what the order says. `weights` are those of the sources that the
    shards name (`imprint.pipelines.mixing`). `further` names parts, by extension, that become columns as well; a
    sample without one is bad. `masks=False` leaves masks unread. `verify` compares each shard with the manifest's
    SHA-256 first. `cross_reference` makes triplets: each row gets the columns of `ObjectColumns`.
    """

    seed: int = 0
    shuffle_buffer: int = 0
    image_size: int | None = None
    on_bad: Literal["drop", "substitute"] = "drop"
    max_member_bytes: int = 64 * MEBIBYTE
    max_pixels: int = 64_000_000
    max_bad_share: float = 0.01
    quarantine: str | None = None
    weights: tuple[float, ...] = (1.0,)
    further: tuple[str, ...] = ()
    masks: bool = True
    verify: bool = False
    cross_reference: CrossReference | None = None
    retry: Retry = DEFAULT_RETRY

    def __post_init__(self) -> None:
        for extension in self.further:
            if not is_readable(extension):
                raise ValueError(
                    f"further={extension!r}: expected an extension that ends in cls, npy, safetensors, txt, json or a "
                    "picture's, in small letters"
                )
        if self.cross_reference is not None and not self.masks:
            raise ValueError("cross_reference needs masks=True: an object is told from its background by its mask")


class Row(TypedDict):
    """One sample, and its further parts as columns of their own.

    `mask` is all zero where `has_mask` is false (and neither is there without `ReadOptions.masks`); `__index__` is
    the position in the run and `__source__` the number of the source. `size_conditioning`: `imprint.pipelines.sizes`.
    """

    __key__: str
    __shard__: str
    __index__: int
    __source__: int
    image: UInt8[np.ndarray, "h w 3"]
    mask: UInt8[np.ndarray, "h w"]
    has_mask: bool
    caption: str
    json: str
    size_conditioning: Int32[np.ndarray, "6"]


class ObjectColumns(TypedDict):
    """The picture that shows a row's object, its own or another one of it, and the key of its sample.

    Beside them stands `is_domain`: whether the row's source is the domain's.
    """

    object_key: str
    object_image: UInt8[np.ndarray, "h w 3"]
    object_mask: UInt8[np.ndarray, "h w"]
    object_has_mask: bool


def rows_as_written(shards: Sequence[Shard], options: ReadOptions) -> Iterator[Row]:
    """All rows of counted shards, once, in the order in which they were written.

    Raises:
        ShardError, DataError: as `read_slice`; or the shards hold no sample.
    """
    counts = [shard.samples or 0 for shard in shards]
    if not sum(counts):
        raise DataError(f"reading samples: none in {[shard.url for shard in shards]}; check what wrote them")
    for part in plan(counts, seed=0, shuffle_buffer=0, start=0, stop=sum(counts)):
        yield from read_slice({n: shards[n] for n in part.shards}, part, options, total=sum(counts))


def read_rows(
    shards: Mapping[int, Shard], part: MixedSlice, options: ReadOptions, *, total: int, room: Room | None = None
) -> Iterator[Row]:
    """The rows of a slice of the mixed order. A row that is left out leaves its position out, so the ratio holds.

    Raises:
        ShardError, DataError: as `read_slice`.
    """
    mix = Mix(options.weights)
    streams = [_source_rows(shards, slices, s, options, mix, total, room) for s, slices in enumerate(part.parts)]
    ahead: list[Row | None] = [None for _ in streams]
    for position in range(part.index, part.index + part.rows):
        source = mix.source(position)
        row = ahead[source] or next(streams[source], None)
        if row is not None and row["__index__"] > mix.taken(source, position):
            ahead[source] = row  # what belongs here was dropped
            continue
        ahead[source] = None
        if row is not None:
            row["__index__"], row["__source__"] = position, source
            if options.cross_reference is not None:
                row["is_domain"] = source in options.cross_reference.sources  # type: ignore[typeddict-unknown-key]
            yield row
    for stream in streams:  # each has given all of its rows; going on to its end closes the quarantine
        left_over = next(stream, None)
        assert left_over is None, left_over["__key__"]


def _source_rows(
    shards: Mapping[int, Shard],
    slices: Sequence[Slice],
    source: int,
    options: ReadOptions,
    mix: Mix,
    total: int,
    room: Room | None,
) -> Iterator[Row]:
    own = replace(
        options,
        seed=source_seed(options.seed, source),
        shuffle_buffer=source_buffer(options.shuffle_buffer, mix.share(source)),
        cross_reference=options.cross_reference and options.cross_reference.of_source(source),
    )
    for part in slices:
        yield from read_slice({n: shards[n] for n in part.shards}, part, own, total=total, room=room)


def read_slice(
    shards: Mapping[int, Shard], part: Slice, options: ReadOptions, *, total: int, room: Room | None = None
) -> Iterator[Row]:
    """The rows of a slice in their order; memory holds one sample at a time beside the shards' tables of contents.

    `shards` gives the slice's shards by number; `total` is the number of samples in the whole data set; `room` is
    given to the decoder.

    Raises:
        ShardError: a shard is missing, cut, or holds another number of samples than its manifest says.
        DataError: too many samples are bad.
    """
    counts = {number: shard.samples or 0 for number, shard in shards.items()}
    order = window_order(counts, part, seed=options.seed, shuffle_buffer=options.shuffle_buffer)
    quarantine = Quarantine(options.quarantine, total=total, max_share=options.max_bad_share)
    with ExitStack() as stack:
        window = _Window(shards, options, quarantine, room)
        for number in part.shards:
            opened = open_shard(shards[number], options.retry, verify=options.verify)
            window.add(number, stack.enter_context(opened))
        for place in range(part.first, part.last):
            row = window.read(*order[place])
            if row is None and options.on_bad == "substitute":
                row = _nearest_good(window, order, place)
            if row is not None:
                row["__index__"] = part.index + place - part.first
                if options.cross_reference is not None:
                    row.update(window.object_of(row, options.cross_reference))  # type: ignore[typeddict-item]
                yield row
        quarantine.close()


class _Window:
    """The open shards of a window and their tables of contents."""

    def __init__(
        self, shards: Mapping[int, Shard], options: ReadOptions, quarantine: Quarantine, room: Room | None
    ) -> None:
        self.shards, self.options, self.quarantine, self.room = shards, options, quarantine, room
        self.open: dict[int, tuple[int, list[Entry]]] = {}
        self._identities: Identities | None = None

    def add(self, number: int, descriptor: int) -> None:
        shard = self.shards[number]
        entries = list(group_members(iter_members(descriptor, shard.url), self.options.further))
        if len(entries) != shard.samples:
            raise ShardError(
                f"reading a shard: it holds {len(entries)} samples and its manifest says {shard.samples}, so it was "
                "cut or replaced; copy it again or write the manifest anew",
                shard=shard.url,
            )
        self.open[number] = descriptor, entries

    def read(self, number: int, sample: int, *, in_room: bool = True) -> Row | None:
        """A decoded sample, or None when it is bad (and now in quarantine); its picture in the room for the next row,
        or in memory of its own."""
        descriptor, entries = self.open[int(number)]
        entry, url, options = entries[int(sample)], self.shards[int(number)].url, self.options
        if not options.masks:
            for name in MASKS:
                entry.parts.pop(name, None)
        try:
            parts = read_parts(descriptor, entry, options.max_member_bytes, options.further, url)
            decoded = decode_sample(
                parts, size=options.image_size, max_pixels=options.max_pixels, further=options.further,
                room=self.room if in_room else None,
            )  # fmt: skip
        except SampleError as error:
            self.quarantine.add(url, entry.key, entry.offset, error)
            return None
        row: Any = {
            "__key__": entry.key, "__shard__": url, "__index__": 0, "__source__": 0, "image": decoded["image"],
            "caption": decoded["caption"], "json": decoded["json"],
            "size_conditioning": decoded["size_conditioning"], **decoded["further"],
        }  # fmt: skip
        if options.masks:
            mask = decoded["mask"]
            row["has_mask"] = mask is not None
            row["mask"] = np.zeros(decoded["image"].shape[:2], np.uint8) if mask is None else mask
        return row

    def object_of(self, row: Row, cross_reference: CrossReference) -> ObjectColumns:
        """The row's object: another picture of it where that is drawn, there and good, else the row's own."""
        seed, position, shown = self.options.seed, row["__index__"], row
        if cross_reference.wants(seed, position):
            if self._identities is None:
                urls = {number: shard.url for number, shard in self.shards.items()}
                self._identities = Identities.of_window(
                    self.open, cross_reference.key, self.options.max_member_bytes, urls
                )
            others = self._identities.others(row["json"], cross_reference.key, row["__key__"])
            place = cross_reference.pick(seed, position, others)
            shown = (place and self.read(*place, in_room=False)) or row
        return {
            "object_key": shown["__key__"], "object_image": shown["image"], "object_mask": shown["mask"],
            "object_has_mask": shown["has_mask"],
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
