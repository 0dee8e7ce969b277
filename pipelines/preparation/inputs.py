"""What there is to prepare: pictures of a folder, rows of a table, samples of shards, cut into chunks of work."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from imprint.config.jobs.shards import FolderInput, InputSpec, ShardsInput, TableInput
from imprint.config.paths import is_url, resolve_path
from imprint.config.problems import nearest
from imprint.errors import DataError, ImprintError, SampleError
from imprint.pipelines.reading import ReadOptions
from imprint.pipelines.samples import MASKS, PICTURES, TEXT, group_members, read_parts
from imprint.pipelines.shards import Shard, counted, find_shards, open_shard
from imprint.pipelines.storage import read_on, with_retry
from imprint.pipelines.tar import iter_members

_CHUNK = 256  # pictures surveyed in one task, and done again after a kill in the midst of it
_SHARD_CHUNK = 1000  # samples; a task reads the table of contents of its shard, so these are larger
_AT_ONCE = 16  # downloads of one task at the same time
_MAGIC = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp"}


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of a local file that hold one part of a sample."""

    path: str
    offset: int
    size: int


@dataclass(slots=True)
class Candidate:
    """One picture and what belongs to it, by extension as in a shard.

    `source` names it to people; `container` and `offset` say where it lies. `spans` is None where the bytes came over
    the network. `problem` says why it could not be read.
    """

    name: str
    source: str
    container: str
    offset: int = 0
    parts: dict[str, bytes] = field(default_factory=dict)
    spans: dict[str, Span] | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    problem: SampleError | None = None


class Chunk(Protocol):
    """Some of the input, read by one task; it pickles."""

    def __len__(self) -> int: ...

    def candidates(self, options: ReadOptions) -> Iterator[Candidate]:
        """Its pictures, in their order."""
        ...


@dataclass(frozen=True)
class Inputs:
    """All chunks in their order. `digest` changes with the input; `stamp` also when a local file was touched."""

    chunks: tuple[Chunk, ...]
    digest: str
    stamp: str
    left_out: dict[str, int] = field(default_factory=dict)  # files of the folder that are not pictures, by extension

    def __len__(self) -> int:
        return sum(len(chunk) for chunk in self.chunks)


def find_inputs(spec: InputSpec, options: ReadOptions) -> Inputs:
    """List what is to be prepared, without reading pictures.

    Raises:
        DataError: nothing is there, a table has no such column, or shards are missing.
    """
    if spec.folder is not None:
        return _list_folder(spec.folder)
    if spec.table is not None:
        return _list_table(spec.table, options)
    assert spec.shards is not None
    return _list_shards(spec.shards, options)


# -- a folder of pictures -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class FolderChunk:
    """Pictures of a folder: the path of each, relative to `root`, with the extensions of its companions."""

    root: str
    items: tuple[tuple[str, tuple[str, ...]], ...]
    identity: bool

    def __len__(self) -> int:
        return len(self.items)

    def candidates(self, options: ReadOptions) -> Iterator[Candidate]:
        for place, companions in self.items:
            stem, _, extension = place.rpartition(".")
            found = Candidate(stem, place, self.root)
            if self.identity:
                found.fields["identity"] = stem.rpartition("/")[0] or Path(self.root).name
            paths = {extension.lower(): place} | {more: f"{stem}.{more}" for more in companions}
            yield _read_files(found, {name: os.path.join(self.root, path) for name, path in paths.items()}, options)


def _list_folder(spec: FolderInput) -> Inputs:
    root = resolve_path(spec.path)
    if not os.path.isdir(root):
        raise DataError(f"listing pictures: {root} is not a folder; check input.folder.path")
    sizes: dict[str, tuple[int, int]] = {}
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if not name.startswith(".")]
        for name in files:
            if not name.startswith("."):
                path = os.path.join(folder, name)
                stat = os.stat(path) if os.path.exists(path) else None
                place = os.path.relpath(path, root).replace(os.sep, "/")
                sizes[place] = (stat.st_size, stat.st_mtime_ns) if stat else (-1, 0)
    masks = tuple(f".{mask}" for mask in MASKS)
    pictures = sorted(
        place for place in sizes
        if place.rpartition(".")[2].lower() in PICTURES and not place.endswith(masks)
    )  # fmt: skip
    others = Counter(Path(place).suffix.lower() or place for place in sizes.keys() - set(pictures))
    left_out = {name: count for name, count in sorted(others.items()) if name not in (".txt", ".json", ".png")}
    if not pictures:
        raise DataError(
            f"listing pictures: none in {root}; expected files that end in {', '.join(PICTURES)}, found {left_out}"
        )
    items = [
        (place, tuple(name for name in (*MASKS, *TEXT) if f"{place.rpartition('.')[0]}.{name}" in sizes))
        for place in pictures
    ]
    chunks = tuple(FolderChunk(root, tuple(part), spec.identity == "folder") for part in _cut(items, _CHUNK))
    named = sorted((place, size) for place, (size, _) in sizes.items())
    return Inputs(chunks, _digest(named), _digest(sorted(sizes.items())), left_out)


def _read_files(found: Candidate, paths: dict[str, str], options: ReadOptions) -> Candidate:
    """`found` with the content of local files, sizes checked first."""
    found.spans = {}
    try:
        for name, path in paths.items():
            size = os.stat(path).st_size
            _check_size(name, size, options)
            with open(path, "rb") as file:
                found.parts[name] = file.read()
            found.spans[name] = Span(path, 0, size)
    except FileNotFoundError as error:
        found.problem = SampleError(f"opening {error.filename}: nothing is there", reason="missing-file")
    except OSError as error:
        found.problem = SampleError(f"opening {error.filename}: {error.strerror}", reason="unreadable-file")
    except SampleError as error:
        found.problem = error
    return found


def _check_size(name: str, size: int, options: ReadOptions) -> None:
    if size > options.max_member_bytes:
        raise SampleError(
            f"reading a picture: .{name} has {size} bytes or more, the limit is {options.max_member_bytes}",
            reason="oversized-member",
        )


# -- a table of paths or URLs -------------------------------------------------------------------------------


@dataclass(frozen=True)
class TableChunk:
    """Rows of a table; a row has `picture`, and `caption`, `mask` and `fields` where there are such columns."""

    table: str
    first: int
    rows: tuple[dict[str, Any], ...]

    def __len__(self) -> int:
        return len(self.rows)

    def candidates(self, options: ReadOptions) -> Iterator[Candidate]:
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            for start in range(0, len(self.rows), _AT_ONCE):
                numbers = range(start, min(start + _AT_ONCE, len(self.rows)))
                yield from threads.map(lambda number: self._candidate(number, options), numbers)

    def _candidate(self, number: int, options: ReadOptions) -> Candidate:
        row = self.rows[number]
        picture = str(row["picture"] or "")
        name = picture.partition("?")[0].rstrip("/").rpartition("/")[2]
        found = Candidate(name.rpartition(".")[0] or name, picture, self.table, self.first + number)
        found.fields = {key: value for key, value in row["fields"].items() if value not in (None, "")}
        if not picture:
            found.problem = SampleError("reading a row of a table: no path of a picture", reason="no-picture")
            return found
        _read_places(found, {name: row[name] for name in ("picture", "mask") if row.get(name)}, self.table, options)
        if row.get("caption"):
            found.parts["txt"] = str(row["caption"]).encode()
        return found


def _read_places(found: Candidate, places: dict[str, str], table: str, options: ReadOptions) -> None:
    """Read picture and mask from paths (relative to the table) or URLs; what is read decides the extension."""
    folder = table.rpartition("/")[0]
    where = {name: place if is_url(place) or place.startswith("/") else f"{folder}/{place}" for name, place in
             places.items()}  # fmt: skip
    if any(is_url(place) for place in where.values()):
        contents, spans = {}, None
        try:
            for name, place in where.items():
                if is_url(place):
                    contents[name] = _download(place, options)
                else:
                    _check_size(name, os.stat(place).st_size, options)
                    contents[name] = Path(place).read_bytes()
        except SampleError as error:
            found.problem = error
        except OSError as error:
            found.problem = SampleError(f"opening {error.filename}: {error.strerror}", reason="missing-file")
    else:
        read = _read_files(Candidate(found.name, "", ""), where, options)
        contents, spans, found.problem = read.parts, read.spans, read.problem
    names = {"picture": _MAGIC.get(contents.get("picture", b"")[:2], PICTURES[0]), "mask": MASKS[0]}
    found.parts = {names[name]: content for name, content in contents.items()}
    found.spans = None if spans is None else {names[name]: span for name, span in spans.items()}


def _download(url: str, options: ReadOptions) -> bytes:
    """The bytes at a URL.

    Raises:
        SampleError: unreachable, or oversized-member as soon as more than the limit came.
    """
    pieces, size = [], 0
    try:
        for piece in read_on(url, options.retry):
            size += len(piece)
            _check_size(url, size, options)
            pieces.append(piece)
    except SampleError:
        raise
    except (ImprintError, OSError, ImportError, ValueError) as error:
        raise SampleError(f"fetching {url}: {error}", reason="unreachable") from error
    except Exception as error:  # storages raise classes of their own that share no base
        raise SampleError(f"fetching {url}: {type(error).__name__}: {error}", reason="unreachable") from error
    return b"".join(pieces)


def _list_table(spec: TableInput, options: ReadOptions) -> Inputs:
    place = resolve_path(spec.path)
    content = _read_whole(place, options)
    table = _parse_table(place, content)
    columns = {"picture": spec.picture, "caption": spec.caption, "mask": spec.mask}
    wanted = {name: column for name, column in columns.items() if column is not None}
    for key, column in [*wanted.items(), *(("fields", column) for column in spec.fields)]:
        if column not in table.column_names:
            hint = nearest(column, table.column_names)
            raise DataError(
                f"reading {place}: input.table.{key} names the column {column!r}, and there is none; it has "
                f"{table.column_names}" + (f"; did you mean {hint!r}?" if hint else "")
            )
    if not table.num_rows:
        raise DataError(f"reading {place}: it has a header and no rows")
    chunks = []
    for first in range(0, table.num_rows, _CHUNK):
        part = table.slice(first, _CHUNK)
        values = {name: part.column(column).to_pylist() for name, column in wanted.items()}
        fields = [part.column(column).to_pylist() for column in spec.fields]
        rows = tuple(
            {name: column[i] for name, column in values.items()}
            | {"fields": {name: column[i] for name, column in zip(spec.fields, fields, strict=True)}}
            for i in range(part.num_rows)
        )
        chunks.append(TableChunk(place, first, rows))
    digest = hashlib.sha256(content).hexdigest()
    return Inputs(tuple(chunks), digest, digest)


def _read_whole(place: str, options: ReadOptions) -> bytes:
    def read() -> bytes:
        with fsspec.open(place, "rb") as file:
            return file.read()

    try:
        return with_retry(read, "reading", place, options.retry)
    except ImprintError:
        raise
    except Exception as error:
        raise DataError(f"reading {place}: {error}; check input.table.path") from error


def _parse_table(place: str, content: bytes) -> pa.Table:
    try:
        if place.lower().endswith(".parquet"):
            return pa.parquet.read_table(pa.BufferReader(content))
        parse = pa.csv.ParseOptions(newlines_in_values=True)  # captions may have line breaks, in quotes
        names = pa.csv.open_csv(pa.BufferReader(content), parse_options=parse).schema.names
        text = pa.csv.ConvertOptions(column_types={name: pa.string() for name in names}, strings_can_be_null=False)
        return pa.csv.read_csv(pa.BufferReader(content), parse_options=parse, convert_options=text)
    except (pa.ArrowException, ValueError) as error:
        kind = "Parquet file" if place.lower().endswith(".parquet") else "CSV with a header"
        raise DataError(f"reading {place}: not a {kind}: {error}") from error


# -- other shards -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShardChunk:
    """Samples [first, last) of a shard."""

    shard: Shard
    first: int
    last: int
    verify: bool

    def __len__(self) -> int:
        return self.last - self.first

    def candidates(self, options: ReadOptions) -> Iterator[Candidate]:
        url = self.shard.url
        with open_shard(self.shard, options.retry, verify=self.verify and not self.first) as descriptor:
            entries = list(group_members(iter_members(descriptor, url)))
            if len(entries) != self.shard.samples:
                raise DataError(
                    f"reading a shard: it holds {len(entries)} samples and {self.shard.samples} were expected, so it "
                    "was cut or replaced; copy it again or write the manifest anew",
                    shard=url,
                )
            for entry in entries[self.first : self.last]:
                found = Candidate(entry.key, f"{url.rpartition('/')[2]}/{entry.key}", url, entry.offset)
                try:
                    found.parts = read_parts(descriptor, entry, options.max_member_bytes, (), url)
                except SampleError as error:
                    found.problem = error
                if not is_url(url):
                    found.spans = {name: Span(url, part.offset, part.size) for name, part in entry.parts.items()}
                yield found


def _list_shards(spec: ShardsInput, options: ReadOptions) -> Inputs:
    shards = counted(find_shards(spec.places, spec.split), options.retry)
    chunks = [
        ShardChunk(shard, first, min(first + _SHARD_CHUNK, shard.samples or 0), options.verify)
        for shard in shards
        for first in range(0, shard.samples or 0, _SHARD_CHUNK)
    ]
    if not chunks:
        raise DataError(f"listing shards: no samples in {list(spec.places)}")
    named = [(shard.url.rpartition("/")[2], shard.samples, shard.bytes, shard.sha256) for shard in shards]
    times = [0 if is_url(shard.url) else os.stat(shard.url).st_mtime_ns for shard in shards]
    return Inputs(tuple(chunks), _digest(named), _digest([named, times]))


def _cut(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _digest(document: Any) -> str:
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()
