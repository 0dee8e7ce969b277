"""Triplets for the Taming Encoder: (picture, object picture, caption), and whether the sample is domain-specific.

The object picture is the picture without its background, or, with probability omega, another picture of the same
identity without its background (cross-reference regularization, Eq. 3). General-domain samples have none: a trainer
gives them the null embedding (object-embedding dropping, Eq. 4). Source: arXiv:2304.02642, sections 3.3 and 3.4.

Which picture is taken is a pure function of (seed, epoch, sample): the same for any number of workers, and after a
resume.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

import fsspec
import numpy as np
from jaxtyping import UInt8
from ray.data import Dataset

from imprint.config.data import MaskerSpec
from imprint.config.paths import is_url
from imprint.config.triplets import TripletSpec
from imprint.errors import DataError, SampleError, ShardError
from imprint.pipelines.blocks import column
from imprint.pipelines.decode import decode_sample
from imprint.pipelines.masks import Masker, load_masker
from imprint.pipelines.pools import pool_options
from imprint.pipelines.samples import MASKS, PICTURES, Entry, group_members
from imprint.pipelines.shards import Shard, open_shard
from imprint.pipelines.storage import DEFAULT_RETRY, with_retry
from imprint.pipelines.tar import iter_members, read_exactly

Columns = dict[str, np.ndarray]
_MAX_PIXELS = 64_000_000
_HALF = 128  # masks are binary in the paper; ours are soft at the subject's edge


@dataclass(frozen=True, slots=True)
class Place:
    """Where picture and mask of a sample lie: extension -> (offset, size) in bytes of the shard."""

    shard: str
    key: str
    parts: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class IdentityIndex:
    """The pictures of each identity of the domain-specific samples, in the order of the shards.

    `numbers` gives a sample's number, and the number of its identity (-1 for none), by (shard, key).
    """

    places: tuple[Place, ...] = ()
    members: tuple[tuple[int, ...], ...] = ()  # by identity: numbers of samples
    numbers: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)


def index_identities(shards: Sequence[Shard], spec: TripletSpec) -> IdentityIndex:
    """Read the json of every sample once and note where the domain-specific ones lie.

    Raises:
        ShardError: a shard is missing or cut.
        DataError: no sample is domain-specific.
    """
    places: list[Place] = []
    members: dict[str, list[int]] = {}
    found: dict[tuple[str, str], tuple[int, str]] = {}
    for shard in shards:
        with open_shard(shard) as descriptor:
            for entry in group_members(iter_members(descriptor, shard.url)):
                record = _record(descriptor, entry, shard.url)
                if entry.problem or not is_domain_specific(record, spec):
                    continue
                number, identity = len(places), str(record.get("identity") or "")
                kept = {
                    name: (part.offset, part.size) for name, part in entry.parts.items() if name in (*PICTURES, *MASKS)
                }
                places.append(Place(shard.url, entry.key, kept))
                found[(shard.url, entry.key)] = number, identity
                if identity:
                    members.setdefault(identity, []).append(number)
    if not places:
        wanted = f"a domain of {list(spec.domains)}" if spec.domains is not None else "an identity"
        raise DataError(f"indexing identities: none of the samples of {len(shards)} shards names {wanted} in its json")
    order = {identity: number for number, identity in enumerate(members)}
    return IdentityIndex(
        tuple(places),
        tuple(tuple(numbers) for numbers in members.values()),
        {sample: (number, order.get(identity, -1)) for sample, (number, identity) in found.items()},
    )


def is_domain_specific(record: dict[str, object], spec: TripletSpec) -> bool:
    """Whether a sample's json says that it belongs to the domain that the encoder is for."""
    if spec.domains is None:
        return bool(record.get("identity"))
    return record.get("domain") in spec.domains


def draw_reference(members: Sequence[int], own: int, omega: float, *, seed: int, epoch: int) -> int:
    """Which sample the object picture of sample `own` shows, out of its identity's `members` (Eq. 3).

    With probability omega one of the others, each as likely; else, or where there is no other, `own`. `members` are
    ascending.
    """
    rng = np.random.default_rng([seed, epoch, own])
    if len(members) < 2 or rng.random() >= omega:
        return own
    other = int(rng.integers(len(members) - 1))
    return members[other + (other >= bisect_left(members, own))]


def cut_out(
    image: UInt8[np.ndarray, "h w 3"], mask: UInt8[np.ndarray, "h w"], ground: Sequence[int] = (0, 0, 0)
) -> UInt8[np.ndarray, "h w 3"]:
    """The picture where the binary mask is on, plain ground elsewhere: x times m on black ground."""
    return np.where(mask[..., None] >= _HALF, image, np.array(ground, np.uint8))


class TripletStage:
    """Adds `object` [n, h, w, 3], `has_object`, `is_domain` and `object_key` to rows with pictures and masks.

    `epoch_rows` is the number of rows of the stream in which each sample comes once; `__index__` divided by it is the
    epoch. Pictures of other shards are read by their place, `image_size` as in the stream's own reader. A reference
    that cannot be read is replaced by the sample itself.
    """

    def __init__(
        self, index: IdentityIndex, spec: TripletSpec, masks: MaskerSpec, *, seed: int, epoch_rows: int, image_size: int
    ) -> None:
        self.index, self.spec, self.seed = index, spec, seed
        self.epoch_rows, self.image_size = epoch_rows, image_size
        self.masker: Masker = load_masker(masks)
        self.keep_own = masks.kind == "sample"

    def __call__(self, batch: Columns) -> Columns:
        objects, keys, domain = [], [], []
        for i in range(len(batch["__key__"])):
            known = self.index.numbers.get((str(batch["__shard__"][i]), str(batch["__key__"][i])))
            domain.append(known is not None)
            if known is None:
                objects.append(np.zeros_like(batch["image"][i]))
                keys.append("")
                continue
            epoch = int(batch["__index__"][i]) // self.epoch_rows
            image, mask, key = self._reference(known, epoch) or (batch["image"][i], batch["mask"][i], None)
            objects.append(cut_out(image, mask, self.spec.ground))
            keys.append(str(batch["__key__"][i]) if key is None else key)
        flags = np.array(domain, bool)
        return {
            **batch, "object": column(objects), "object_key": np.array(keys), "is_domain": flags, "has_object": flags
        }  # fmt: skip

    def _reference(self, known: tuple[int, int], epoch: int) -> tuple[np.ndarray, np.ndarray, str] | None:
        """Another picture of the identity, its mask and its key; None where the sample's own is to be taken."""
        own, identity = known
        members = self.index.members[identity] if identity >= 0 else (own,)
        drawn = draw_reference(members, own, self.spec.omega, seed=self.seed, epoch=epoch)
        if drawn == own:
            return None
        place = self.index.places[drawn]
        try:
            decoded = decode_sample(read_place(place), size=self.image_size, max_pixels=_MAX_PIXELS)
        except (SampleError, StopIteration):
            return None
        mask = decoded["mask"] if self.keep_own else None
        return decoded["image"], self.masker([decoded["image"]])[0] if mask is None else mask, place.key


def add_triplets(
    rows: Dataset,
    index: IdentityIndex,
    spec: TripletSpec,
    masks: MaskerSpec,
    *,
    seed: int,
    epoch_rows: int,
    image_size: int,
) -> Dataset:
    """The stream with the columns of `TripletStage`; `rows` have masks already. The actors are those of `masks`."""
    return rows.map_batches(
        TripletStage, fn_constructor_args=(index, spec, masks),
        fn_constructor_kwargs={"seed": seed, "epoch_rows": epoch_rows, "image_size": image_size},
        batch_size=None, batch_format="numpy", **pool_options(masks),
    )  # fmt: skip


def read_place(place: Place) -> dict[str, bytes]:
    """The parts of one sample, by range requests where its shard is remote.

    Raises:
        ShardError: the shard is not there any more, or the storage went on failing.
    """
    try:
        if is_url(place.shard):
            filesystem, path = fsspec.core.url_to_fs(place.shard)
            return {
                name: with_retry(
                    lambda begin=offset, end=offset + size: filesystem.cat_file(path, start=begin, end=end),
                    "reading a sample of", place.shard, DEFAULT_RETRY,
                )
                for name, (offset, size) in place.parts.items()
            }  # fmt: skip
        descriptor = os.open(place.shard, os.O_RDONLY)
        try:
            return {
                name: read_exactly(descriptor, size, offset, place.shard)
                for name, (offset, size) in place.parts.items()
            }
        finally:
            os.close(descriptor)
    except (OSError, ImportError) as error:
        raise ShardError(f"reading the sample {place.key}: {error}", shard=place.shard) from error


def _record(descriptor: int, entry: Entry, shard: str) -> dict[str, object]:
    part = entry.parts.get("json")
    if part is None or part.refused:
        return {}
    try:
        record = json.loads(read_exactly(descriptor, part.size, part.offset, shard))
    except (ValueError, RecursionError):
        return {}  # the reader quarantines the sample
    return record if isinstance(record, dict) else {}
