"""Jobs that make the default data sets, with a progress bar: `prepare_faces`."""

from __future__ import annotations

import logging
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from imprint.config.jobs import PrepareFaces
from imprint.config.paths import resolve_path
from imprint.pipelines.datasets.faces import prepare_faces

logger = logging.getLogger(__name__)


def run_faces(spec: PrepareFaces, *, job_file: Path | None, source: str) -> None:
    """Render the avatars; the manifests record the seed and the generator, so `source` is not kept."""
    spec = spec.model_copy(update={"out_dir": resolve_path(spec.out_dir)})
    with _progress() as bar:
        task = bar.add_task(spec.name, total=None)
        folders = prepare_faces(spec, lambda done, total: bar.update(task, completed=done, total=total))
    for size, folder in sorted(folders.items()):
        logger.info("%s: pictures of %d px are in %s", spec.name, size, folder)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("pictures"), TimeRemainingColumn()
    )
