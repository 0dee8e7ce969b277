"""What is in shards, and whether they are what their manifest says."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from PIL import Image

from imprint.config.paths import is_url, resolve_path
from imprint.errors import DataError, ImprintError, SampleError
from imprint.pipelines import quarantine
from imprint.pipelines.decode import decode_sample
from imprint.pipelines.samples import MASKS, PICTURES, Entry, group_members, read_parts
from imprint.pipelines.shards import MANIFEST, Shard, counted, find_shards, open_shard
from imprint.pipelines.tar import iter_members

_MAX_PART_BYTES = 64 << 20
_MAX_PIXELS = 64_000_000
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
Progress = Callable[[int, int], None]
"""Called with the number of shards done and the number of all."""


@dataclass(frozen=True)
class Shown:
    """A sample for the contact sheet. `mask` is None where it has none; `problem` says why there is no picture."""

    key: str
    shard: str
    image: np.ndarray | None  # uint8 [h, w, 3]
    mask: np.ndarray | None  # uint8 [h, w]
    caption: str
    fields: dict[str, Any]
    problem: str = ""


@dataclass
class Summary:
    """Counts over all samples of some shards."""

    shards: int = 0
    bytes: int = 0
    samples: int = 0
    extensions: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (width, height) in px
    caption_words: list[int] = field(default_factory=list)  # of samples with a caption
    mask_shares: list[float] = field(default_factory=list)  # share of the picture that the mask covers
    identities: Counter[str] = field(default_factory=Counter)
    domains: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)  # found now, by reason
    quarantined: Counter[str] = field(default_factory=Counter)  # while the shards were made, by reason
    filtered: Counter[str] = field(default_factory=Counter)


# -- inspect ------------------------------------------------------------------------------------------------


def inspect_shards(
    places: Sequence[str], split: str | None, pictures: int, progress: Progress | None = None
) -> tuple[Summary, list[Shown]]:
    """Read all headers, captions and masks, and decode `pictures` samples that lie evenly over all of them.

    Raises:
        DataError, ShardError: shards are missing or cut.
    """
    shards = counted(find_shards([resolve_path(place) for place in places], split))
    total = sum(shard.samples or 0 for shard in shards)
    wanted = set(np.linspace(0, max(0, total - 1), min(pictures, total)).round().astype(int).tolist())
    summary, shown = Summary(shards=len(shards)), list[Shown]()
    for folder in {shard.url.rpartition("/")[0]: None for shard in shards}:
        _add_records(summary, folder)
    for number, shard in enumerate(shards):
        with open_shard(shard) as descriptor:
            entries = list(group_members(iter_members(descriptor, shard.url)))
            for entry in entries:
                if summary.samples in wanted:
                    shown.append(_show(descriptor, entry, shard))
                _count(summary, descriptor, entry, shard)
            summary.bytes += shard.bytes or sum(part.size for entry in entries for part in entry.parts.values())
        if progress is not None:
            progress(number + 1, len(shards))
    return summary, shown


def _add_records(summary: Summary, folder: str) -> None:
    """What the job that made the shards wrote beside them."""
    if is_url(folder):
        return
    summary.quarantined += quarantine.summary(Path(folder) / "quarantine")
    report = Path(folder) / "report.json"
    if report.is_file():
        try:
            summary.filtered += Counter(json.loads(report.read_text())["filtered"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"reading {report}: not the report of prepare_shards ({error})") from error


def _count(summary: Summary, descriptor: int, entry: Entry, shard: Shard) -> None:
    summary.samples += 1
    summary.extensions.update(entry.parts.keys())
    try:
        parts = read_parts(descriptor, entry, _MAX_PART_BYTES, (), shard.url)
        with Image.open(io.BytesIO(parts[next(name for name in PICTURES if name in parts)])) as picture:
            summary.sizes[picture.size] += 1
        fields = json.loads(parts.get("json", b"{}"))
        if caption := parts.get("txt", b"").decode().split():
            summary.caption_words.append(len(caption))
        for name in MASKS:
            if name in parts:
                with Image.open(io.BytesIO(parts[name])) as mask:
                    summary.mask_shares.append(float(np.asarray(mask.convert("L")).mean() / 255))
        for counter, key in ((summary.identities, "identity"), (summary.domains, "domain")):
            if isinstance(fields, dict) and fields.get(key) not in (None, ""):
                counter[str(fields[key])] += 1
    except SampleError as error:
        summary.bad[str(error.where.get("reason", "bad"))] += 1
    except (OSError, SyntaxError, *_BOMBS):
        summary.bad["corrupt-picture"] += 1
    except ValueError:
        summary.bad["bad-text"] += 1


def _show(descriptor: int, entry: Entry, shard: Shard) -> Shown:
    name = shard.url.rpartition("/")[2]
    try:
        parts = read_parts(descriptor, entry, _MAX_PART_BYTES, (), shard.url)
        sample = decode_sample(parts, size=None, max_pixels=_MAX_PIXELS)
    except SampleError as error:
        return Shown(entry.key, name, None, None, "", {}, error.message)
    return Shown(entry.key, name, sample["image"], sample["mask"], sample["caption"], json.loads(sample["json"]))


# -- verify -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """A shard, or a folder, and what is wrong with it."""

    place: str
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


def verify_shards(places: Sequence[str], progress: Progress | None = None) -> tuple[int, list[Fault]]:
    """Compare every shard with its manifest: there, bytes, SHA-256, number of samples; returns (shards, faults).

    A .tar without a manifest beside it is a fault, and so is one in a folder that its manifest does not list.

    Raises:
        DataError: a folder has no manifest, or the manifest cannot be read.
    """
    shards = find_shards([resolve_path(place) for place in places])
    faults = [fault for place in places for fault in _unlisted(resolve_path(place), shards)]
    for number, shard in enumerate(shards):
        faults += [Fault(shard.url, what) for what in _wrong_with(shard)]
        if progress is not None:
            progress(number + 1, len(shards))
    return len(shards), faults


def _wrong_with(shard: Shard) -> Iterator[str]:
    if shard.samples is None:
        yield f"no {MANIFEST} beside it lists it"
        return
    if shard.sha256 is None:
        yield f"{MANIFEST} gives no sha256 for it"
    try:
        with open_shard(shard, verify=True) as descriptor:
            found = sum(1 for _ in group_members(iter_members(descriptor, shard.url)))
    except ImprintError as error:
        yield error.message
        return
    if found != shard.samples:
        yield f"it holds {found} samples and its manifest says {shard.samples}"


def _unlisted(place: str, shards: Sequence[Shard]) -> Iterator[Fault]:
    if place.endswith(".tar"):
        return
    known = {shard.url.rpartition("/")[2] for shard in shards if shard.url.startswith(place.rstrip("/") + "/")}
    filesystem, path = fsspec.core.url_to_fs(place)
    try:
        names = sorted(str(found).rpartition("/")[2] for found in filesystem.ls(path, detail=False))
    except (OSError, NotImplementedError):
        return  # a web server lists nothing; whatever cannot be listed, what the manifest names is still checked
    for name in names:
        if name.endswith(".tar") and name not in known:
            yield Fault(f"{place.rstrip('/')}/{name}", f"{MANIFEST} does not list it")
