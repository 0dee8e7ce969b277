"""The first pass: every picture is read once, and what the plan needs to know of it is written down.

A chunk of input gives one Parquet file, whole or not at all, so that a killed run goes on with the next one. What came
over the network is kept beside it: the second pass reads local files only, and always the same bytes.
"""

from __future__ import annotations

import io
import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path

import imagehash
import numpy as np
import pyarrow as pa
import pyarrow.parquet
from jaxtyping import UInt8
from PIL import Image

from imprint.errors import DataError, SampleError
from imprint.pipelines.decode import decode_sample
from imprint.pipelines.preparation.inputs import Candidate, Chunk, Span
from imprint.pipelines.reading import ReadOptions
from imprint.pipelines.writer import storage_errors

SCHEMA = pa.schema(
    {
        "name": pa.string(), "source": pa.string(), "container": pa.string(), "offset": pa.int64(),
        "spans": pa.string(), "fields": pa.string(), "height": pa.int32(), "width": pa.int32(),
        "hash": pa.uint64(), "reason": pa.string(), "detail": pa.string(),
    }
)  # fmt: skip
_HASH_SIDE = 256  # px; the hash looks at 32 x 32, so a larger picture is made smaller cheaply first


def survey_path(folder: Path, number: int) -> Path:
    """Where the survey of a chunk is written."""
    return folder / f"survey-{number:06d}.parquet"


def survey_chunk(chunk: Chunk, number: int, folder: Path, options: ReadOptions) -> Iterator[pa.Table]:
    """Read the pictures of a chunk and write `survey-NNNNNN.parquet`; gives a table of one row, the chunk's number.

    Raises:
        ShardError: a shard is missing or cut.
        StorageError: no space.
    """
    kept = _Kept(folder / f"fetched-{number:06d}.bin")
    rows = [_survey(candidate, kept, options) for candidate in chunk.candidates(options)]
    kept.write()
    columns = {name: [row[name] for row in rows] for name in SCHEMA.names}
    buffer = io.BytesIO()
    pa.parquet.write_table(pa.table(columns, SCHEMA), buffer)
    write_whole(survey_path(folder, number), buffer.getvalue())
    yield pa.table({"chunk": [number], "pictures": [len(rows)]})


def load_surveys(folder: Path, chunks: Sequence[Chunk]) -> pa.Table:
    """All surveys in the order of the chunks.

    Raises:
        DataError: one was damaged.
    """
    tables = []
    for number, chunk in enumerate(chunks):
        path = survey_path(folder, number)
        try:
            table = pa.parquet.read_table(path, schema=SCHEMA)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"reading {path}: {error}; remove it and run again") from error
        if len(table) != len(chunk):
            raise DataError(f"reading {path}: {len(table)} pictures, expected {len(chunk)}; remove it and run again")
        tables.append(table)
    return pa.concat_tables(tables)


def read_spans(document: str) -> dict[str, bytes]:
    """The parts of a sample from where the survey found them.

    Raises:
        DataError: the input was changed since.
    """
    parts = {}
    for name, values in json.loads(document).items():
        span = Span(*values)
        try:
            with open(span.path, "rb") as file:
                file.seek(span.offset)
                parts[name] = file.read(span.size)
        except OSError as error:
            raise _changed(span, str(error.strerror)) from error
        if len(parts[name]) != span.size:
            raise _changed(span, f"it ends before byte {span.offset + span.size}")
    return parts


def _changed(span: Span, what: str) -> DataError:
    return DataError(f"reading {span.path} again: {what}; it was changed during the run, run again")


def perceptual_hash(image: UInt8[np.ndarray, "h w 3"]) -> int:
    """64 bits: which low frequencies of the picture's grey levels are above their median (imagehash.phash)."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((_HASH_SIDE, _HASH_SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    bits = imagehash.phash(picture).hash.ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def write_whole(path: Path, content: bytes) -> None:
    """A file that appears whole or not at all, also where a task runs twice at the same time.

    Raises:
        StorageError: no space, no permission.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    with storage_errors("writing", path):
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


class _Kept:
    """Parts that lie in no local file, on their way to one of ours."""

    def __init__(self, path: Path) -> None:
        self.path, self.content = path, bytearray()

    def add(self, part: bytes) -> Span:
        self.content += part
        return Span(str(self.path), len(self.content) - len(part), len(part))

    def write(self) -> None:
        if self.content:
            write_whole(self.path, bytes(self.content))


def _survey(candidate: Candidate, kept: _Kept, options: ReadOptions) -> dict[str, object]:
    height = width = bits = 0
    problem, spans = candidate.problem, dict[str, Span]()
    if problem is None:
        try:
            decoded = decode_sample(candidate.parts, size=None, max_pixels=options.max_pixels)
            spans = _spans(candidate, kept)
            height, width, bits = *decoded["image"].shape[:2], perceptual_hash(decoded["image"])
        except SampleError as error:
            problem = error
    return {
        "name": candidate.name, "source": candidate.source, "container": candidate.container,
        "offset": candidate.offset, "spans": json.dumps({name: astuple(span) for name, span in spans.items()}),
        "fields": json.dumps(candidate.fields, default=str), "height": height, "width": width, "hash": bits,
        "reason": str(problem.where.get("reason", "bad")) if problem else "",
        "detail": problem.message if problem else "",
    }  # fmt: skip


def _spans(candidate: Candidate, kept: _Kept) -> dict[str, Span]:
    known: Mapping[str, Span] = candidate.spans or {}
    return {name: known.get(name) or kept.add(part) for name, part in candidate.parts.items()}
