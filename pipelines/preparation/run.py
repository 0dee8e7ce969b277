"""Survey the input, plan the shards, write them: whole or not at all, and on from where a run was killed.

All of it happens in `.<name>.preparing` beside the folder that is asked for, which is renamed when it is finished.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from imprint.config.jobs.shards import PrepareShards
from imprint.config.paths import path_or_name, resolve_path
from imprint.errors import DataError, SampleError, StorageError
from imprint.pipelines.preparation.execution import Executor, InProcess, OnRay
from imprint.pipelines.preparation.inputs import Inputs, find_inputs
from imprint.pipelines.preparation.planning import Plan, ShardPlan, plan_shards, sample_key
from imprint.pipelines.preparation.stages import copy_rows, members, read_rows
from imprint.pipelines.preparation.survey import load_surveys, survey_chunk, survey_path, write_whole
from imprint.pipelines.quarantine import Quarantine
from imprint.pipelines.reader import BLOCK_BYTES
from imprint.pipelines.reading import MEBIBYTE, ReadOptions
from imprint.pipelines.storage import Retry
from imprint.pipelines.writer import MANIFEST, Sample, ShardFolder, storage_errors, write_shard

log = logging.getLogger(__name__)
REPORT = "report.json"
FILTERED = "filtered.jsonl"
QUARANTINE = "quarantine"
_ROWS_PER_TASK = 64  # pictures read, captioned, masked and encoded together; batches never span shards
_PACKAGES = ("imagehash", "numpy", "pillow", "simplejpeg")  # what the bytes of shards depend on

Progress = Callable[[str, int, int], None]
"""Called with the pass ("reading", "writing"), the pictures done and the number of all."""


@dataclass(frozen=True)
class Report:
    """What became of the input: `inputs` = `written` + all quarantined + all filtered."""

    inputs: int
    written: int
    shards: int
    quarantined: dict[str, int] = field(default_factory=dict)
    filtered: dict[str, int] = field(default_factory=dict)
    buckets: dict[str, int] = field(default_factory=dict)
    left_out_files: dict[str, int] = field(default_factory=dict)


def prepare_shards(
    spec: PrepareShards, progress: Progress | None = None, connect: Callable[[], None] | None = None
) -> Report:
    """Write `spec.out_dir`; does nothing where it is finished. `connect` starts Ray where it is needed.

    Raises:
        DataError: the input cannot be read, too much of it is bad, nothing is left, or other shards are there.
        StorageError: no space, no permission, or another run writes the same folder.
    """
    out = Path(resolve_path(spec.out_dir))
    work = out.with_name(f".{out.name}.preparing")
    content = spec.content()
    if spec.features is not None:  # in an actor a relative path may be another
        places = {name: path_or_name(getattr(spec.features, name)) for name in ("backbone", "clip")}
        spec = spec.model_copy(update={"features": spec.features.model_copy(update=places)})
    options = _read_options(spec)
    inputs = find_inputs(spec.input, options)
    origin = {
        "spec": content,
        "inputs": inputs.digest,
        "made_with": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
    progress = progress or (lambda doing, done, total: None)
    if _is_there(out, origin):
        shutil.rmtree(work, ignore_errors=True)  # a run that was killed after its last step left it
        log.info("%s is finished and was made from the same input and settings; nothing to do", out)
        return Report(**json.loads((out / REPORT).read_text()))
    with _working_in(work, {"origin": origin, "stamp": inputs.stamp}):
        executor: Executor = InProcess(spec)
        if spec.run_on == "ray":
            if connect is not None:
                connect()
            executor = OnRay(spec)
        _survey(inputs, work, options, executor, progress)
        survey = load_surveys(work, inputs.chunks)
        plan = plan_shards(survey, spec)
        shards = ShardFolder(work / "shards", {"dataset": spec.name, "origin": origin, "buckets": plan.buckets()})
        _write_shards(plan, survey, shards, spec, executor, progress)
        report = _write_report(plan, survey, inputs, shards.path)
        shards.finish([shard.name for shard in plan.shards])
        with storage_errors("putting the finished shards in place", out):
            os.replace(shards.path, out)
        shutil.rmtree(work, ignore_errors=True)
    return report


def _read_options(spec: PrepareShards) -> ReadOptions:
    return ReadOptions(
        max_member_bytes=int(spec.reader.max_member_mb * MEBIBYTE),
        max_pixels=int(spec.reader.max_megapixels * 1e6),
        verify=spec.reader.verify,
        retry=Retry(tries=spec.reader.storage_tries),
    )


def _is_there(out: Path, origin: dict[str, Any]) -> bool:
    """Whether `out` is finished and made in the same way.

    Raises:
        DataError: something else is there.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    manifest = out / MANIFEST
    try:
        document = json.loads(manifest.read_text())
        found, shards = document["header"]["origin"], document["shards"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"preparing shards: {out} is there and is not a folder that prepare_shards finished ({error}); "
            "remove it or choose another out_dir"
        ) from error
    differing = _differences(found, json.loads(json.dumps(origin)))
    if differing:
        raise DataError(
            f"preparing shards: {out} holds finished shards of other settings or input:\n  "
            + "\n  ".join(differing)
            + "\nRemove it or choose another out_dir"
        )
    sizes = {shard["name"]: shard["bytes"] for shard in shards}
    wrong = [name for name, size in sizes.items() if not (out / name).is_file() or (out / name).stat().st_size != size]
    wrong += [] if (out / REPORT).is_file() else [REPORT]
    if wrong:
        raise DataError(
            f"preparing shards: {out} was finished, and {len(wrong)} of its files are missing or were changed since, "
            f"the first is {wrong[0]}; remove the folder and run again"
        )
    return True


def _differences(there: Any, here: Any, key: str = "") -> list[str]:
    """One line for each key with another value."""
    if isinstance(there, dict) and isinstance(here, dict):
        keys = sorted({*there, *here})
        return [line for name in keys for line in _differences(there.get(name), here.get(name), f"{key}.{name}")]
    if there == here:
        return []
    if key == ".inputs":
        return ["the input: files were added, removed or changed"]
    return [f"{key.removeprefix('.spec').lstrip('.')}: {there!r} there, {here!r} asked for"]


@contextmanager
def _working_in(work: Path, state: dict[str, Any]) -> Iterator[None]:
    """The working folder, for this process alone, empty unless an earlier run of the same state left it.

    Raises:
        StorageError: another run holds it, or it cannot be made.
    """
    with storage_errors("making the working folder", work):
        work.mkdir(parents=True, exist_ok=True)
        lock = (work / "lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StorageError(
                f"preparing shards: another run writes in {work}; wait for it, or choose another out_dir"
            ) from error
        text = json.dumps(state, sort_keys=True).encode()
        note = work / "state.json"
        if not note.is_file() or note.read_bytes() != text:
            if note.exists():
                log.warning("input or settings are not those of the run that was stopped in %s; starting anew", work)
            with storage_errors("emptying the working folder", work):
                for entry in work.iterdir():
                    if entry.name != "lock":
                        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            write_whole(note, text)
        for partial in work.glob(".*.partial"):
            partial.unlink(missing_ok=True)
        yield


# -- the first pass -----------------------------------------------------------------------------------------


def _survey(inputs: Inputs, work: Path, options: ReadOptions, executor: Executor, progress: Progress) -> None:
    missing = [number for number in range(len(inputs.chunks)) if not survey_path(work, number).is_file()]
    done = len(inputs) - sum(len(inputs.chunks[number]) for number in missing)
    progress("reading", done, len(inputs))
    if not missing:
        return
    tasks = [partial(survey_chunk, inputs.chunks[number], number, work, options) for number in missing]
    for row in executor.rows(tasks, [1] * len(tasks)):
        done += row["pictures"]
        progress("reading", done, len(inputs))


# -- the second pass ----------------------------------------------------------------------------------------


def _write_shards(
    plan: Plan, survey: pa.Table, shards: ShardFolder, spec: PrepareShards, executor: Executor, progress: Progress
) -> None:
    missing = [shard for shard in plan.shards if not shards.is_finished(shard.name)]
    total = sum(len(shard.positions) for shard in plan.shards)
    done = total - sum(len(shard.positions) for shard in missing)
    progress("writing", done, total)
    if not missing:
        return
    rows = _encoded_rows(missing, survey, spec, executor)
    for shard in missing:
        names = survey["name"].take(pa.array(shard.positions)).to_pylist()
        keys = [sample_key(position, name) for position, name in zip(shard.positions, names, strict=True)]

        def samples(keys: list[str] = keys) -> Iterator[Sample]:
            nonlocal done
            for key, row in zip(keys, islice(rows, len(keys)), strict=True):
                assert row["key"] == key, (row["key"], key)
                yield Sample(key, members(row))
                done += 1
                progress("writing", done, total)

        shards.record(write_shard(shards.path / shard.name, spec.split, samples()))


def _encoded_rows(
    shards: Sequence[ShardPlan], survey: pa.Table, spec: PrepareShards, executor: Executor
) -> Iterator[dict[str, Any]]:
    """The samples of `shards` in their order, captioned, masked and encoded."""
    parts = [
        (shard.positions[start : start + _ROWS_PER_TASK], shard.shape)
        for shard in shards
        for start in range(0, len(shard.positions), _ROWS_PER_TASK)
    ]
    records = [survey.take(pa.array(positions)).combine_chunks() for positions, _ in parts]
    counts = [len(positions) for positions, _ in parts]
    if spec.pictures.mode == "keep" and spec.captions is None and spec.masks is None:
        copies = [partial(copy_rows, found, positions) for found, (positions, _) in zip(records, parts, strict=True)]
        return executor.rows(copies, counts)
    reads = [
        partial(read_rows, found, positions, shape, spec.pictures, spec.seed, BLOCK_BYTES)
        for found, (positions, shape) in zip(records, parts, strict=True)
    ]
    return executor.encoded(reads, counts)


def _write_report(plan: Plan, survey: pa.Table, inputs: Inputs, folder: Path) -> Report:
    bad = survey.take(pa.array(plan.bad, pa.int64())).to_pylist()
    quarantine = Quarantine(str(folder / QUARANTINE), total=max(1, len(inputs)), max_share=1.0)
    for row in bad:
        error = SampleError(row["detail"], reason=row["reason"])
        quarantine.add(row["container"], row["source"], row["offset"], error)
    with storage_errors("writing the quarantine", folder):
        quarantine.close()
    sources = survey["source"]
    lines = [
        json.dumps({"source": sources[one.position].as_py(), **one._asdict()}, ensure_ascii=False)
        for one in plan.filtered
    ]
    if lines:
        write_whole(folder / FILTERED, ("\n".join(lines) + "\n").encode())
    samples = {shard.name: len(shard.positions) for shard in plan.shards}
    report = Report(
        inputs=len(inputs),
        written=sum(samples.values()),
        shards=len(plan.shards),
        quarantined=dict(sorted(Counter(row["reason"] for row in bad).items())),
        filtered=dict(sorted(Counter(one.reason for one in plan.filtered).items())),
        buckets={shape: sum(samples[name] for name in names) for shape, names in plan.buckets().items()},
        left_out_files=inputs.left_out,
    )
    write_whole(folder / REPORT, (json.dumps(asdict(report), indent=1, sort_keys=True) + "\n").encode())
    return report
