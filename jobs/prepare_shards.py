"""`prepare_shards`: a folder, a table or shards into finished shards, with a progress bar."""

from __future__ import annotations

import logging
from pathlib import Path

import ray.exceptions
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from imprint.config.jobs.shards import PrepareShards
from imprint.config.paths import resolve_path
from imprint.errors import DataError
from imprint.pipelines.preparation.run import Report, prepare_shards

log = logging.getLogger(__name__)


def run(spec: PrepareShards, *, job_file: Path | None, source: str) -> None:
    """Prepare and print what became of the input; the manifest holds the settings, so `source` is not kept.

    Raises:
        DataError: the input cannot be read, too much of it is bad, nothing is left, or other shards are there.
        StorageError: no space, no permission, or another run writes the same folder.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks = {name: bar.add_task(f"{spec.name}: {name}", total=None) for name in ("reading", "writing")}
        try:
            report = prepare_shards(
                spec, lambda doing, done, total: bar.update(tasks[doing], completed=done, total=total), _connect
            )
        except Exception as error:  # Ray wraps what a task raises in classes of its own
            from imprint.jobs.ray_fit import our_error

            ours = our_error(error)
            if ours is not None:
                raise ours from error
            if isinstance(error, ray.exceptions.RayError):
                raise DataError(f"preparing shards on Ray: {error}; run again to go on") from error
            raise
    console = Console(soft_wrap=True, highlight=False)
    for line in describe(report):
        console.print(line)
    console.print(f"[green]ok[/]: the shards are in {resolve_path(spec.out_dir)}")


def _connect() -> None:
    from imprint.jobs.ray_fit import connect  # loads torch and Ray Train, which a run without Ray does not need

    connect()


def describe(report: Report) -> list[str]:
    """The report in lines."""
    lines = [f"{report.written} of {report.inputs} pictures in {report.shards} shards"]
    for name, counts in (("quarantined", report.quarantined), ("filtered", report.filtered)):
        if counts:
            reasons = ", ".join(f"{reason} {count}" for reason, count in counts.items())
            lines.append(f"{name}: {sum(counts.values())} ({reasons})")
    if report.buckets:
        lines.append("buckets: " + ", ".join(f"{shape} {count}" for shape, count in report.buckets.items()))
    if report.left_out_files:
        lines.append("other files: " + ", ".join(f"{name} {count}" for name, count in report.left_out_files.items()))
    return lines
