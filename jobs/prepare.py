"""Jobs that make the default data sets, with a progress bar: `prepare_faces` and `prepare_objects`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from imprint.config.jobs import PrepareFaces, PrepareObjects
from imprint.config.paths import resolve_path
from imprint.pipelines.datasets.faces import prepare_faces
from imprint.pipelines.datasets.objects import prepare_objects

logger = logging.getLogger(__name__)

SpecT = TypeVar("SpecT", PrepareFaces, PrepareObjects)


def run_faces(spec: PrepareFaces, *, job_file: Path | None, source: str) -> None:
    """Render the avatars; the manifests record the seed and the generator, so `source` is not kept."""
    _run(spec, prepare_faces)


def run_objects(spec: PrepareObjects, *, job_file: Path | None, source: str) -> None:
    """Fetch the emoji packages where needed and render them; what was drawn is in the manifests."""
    _run(spec, prepare_objects)


def _run(spec: SpecT, prepare: Callable[[SpecT, Callable[[int, int], None]], dict[int, Path]]) -> None:
    spec = spec.model_copy(update={"out_dir": resolve_path(spec.out_dir)})
    with _progress() as bar:
        task = bar.add_task(spec.name, total=None)
        folders = prepare(spec, lambda done, total: bar.update(task, completed=done, total=total))
    for size, folder in sorted(folders.items()):
        logger.info("%s: pictures of %d px are in %s", spec.name, size, folder)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns)
