"""The driver of a training run on a cluster, whatever it trains: check, follow the journal, track, stop, go on."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from imprint.config.jobs.cluster import ClusterJob
from imprint.config.jobs.pretrain import PretrainEncoder
from imprint.config.paths import path_or_name, resolve_path
from imprint.errors import StorageError, TrainingError
from imprint.jobs.progress import ProgressLine
from imprint.jobs.ray_fit import Folders, connect, fit
from imprint.pipelines import quarantine
from imprint.pipelines.shards import Shard, check_present, counted, find_sources
from imprint.pipelines.stream import FrozenModels, StreamPlan
from imprint.pipelines.triplets import CrossReference
from imprint.tracking.journal import JournalFollower
from imprint.tracking.run import TrackedRun
from imprint.training.checkpoint import latest_position

log = logging.getLogger(__name__)


class StoppedError(TrainingError):
    """The run saved and stopped before its end because it was asked to."""


@dataclass(frozen=True)
class ClusterRun:
    """What differs between jobs: `worker` ("module:function") runs on every rank, `result` is the folder that it leaves
    in the run's own, and `log_result` puts that folder into MLflow."""

    worker: str
    result: str
    log_result: Callable[[TrackedRun, Path], None]
    cross_reference: CrossReference | None = None

    def drive(self, spec: ClusterJob, source: str) -> None:
        """Run a job of absolute paths to its end, or on from where a run of the same name stopped.

        Raises:
            DataError, ShardError: shards are missing or cut; nothing was started.
            StorageError: the run's folder may not be written.
            TrainingError: workers were lost too often, or the loss is not finite.
        """
        folders = Folders(Path(spec.runs) / spec.name)
        _prepare_folder(folders, source)
        if self._is_finished(spec, folders):
            log.info("%s: all %d steps are done; %s", spec.name, spec.training.steps, folders.run / self.result)
            return
        with ThreadPoolExecutor(1) as threads:
            opening = threads.submit(_open_tracking, spec, folders, source)  # some seconds, while Ray starts
            shards = counted(find_sources(spec.data))
            check_present(shards)
            connect(dashboard=True)  # Ray Train asks its state API once a second, and warns as often without one
            tracked = opening.result()
        progress = ProgressLine(spec.name, spec.training.steps)

        def on_record(record: dict[str, Any]) -> None:
            progress.show(record)
            if tracked is not None:
                _track(tracked, folders, record)

        follower = JournalFollower(folders.run, on_record).start()
        status = "FAILED"
        try:
            with _stop_on_sigterm(folders):
                fit(
                    self.worker,
                    {"spec": spec.model_dump(mode="json")},
                    spec.cluster,
                    folders,
                    partial(stream_plan, spec, tuple(shards), folders, self.cross_reference),
                )
            _raise_if_stopped(spec, folders)
            status = "FINISHED"
        except StoppedError:
            status = "KILLED"
            raise
        finally:
            follower.stop()
            progress.close()
            if tracked is not None:
                self._finish_tracking(tracked, folders, status)
        log.info("%s: the result is in %s", spec.name, folders.run / self.result)

    def _is_finished(self, spec: ClusterJob, folders: Folders) -> bool:
        newest = latest_position(folders.checkpoints)
        return newest is not None and newest.step >= spec.training.steps and (folders.run / self.result).is_dir()

    def _finish_tracking(self, tracked: TrackedRun, folders: Folders, status: str) -> None:
        if folders.quarantine.is_dir():
            tracked.log_file(folders.quarantine, "quarantine")
        if status == "FINISHED" and (folders.run / self.result).is_dir():
            self.log_result(tracked, folders.run / self.result)
        tracked.finish(status)


def stream_plan(
    spec: ClusterJob, shards: tuple[Shard, ...], folders: Folders, cross_reference: CrossReference | None = None
) -> StreamPlan:
    """The rows that are still to be trained on, after the newest checkpoint."""
    resume = latest_position(folders.checkpoints)
    batch = spec.training.batch_size
    return StreamPlan(
        shards=shards,
        data=spec.data,
        seed=spec.seed,
        batch_size=batch,
        start=resume.samples if resume else 0,
        stop=spec.training.steps * batch,
        quarantine=str(folders.quarantine),
        cross_reference=cross_reference,
        models=_frozen_models(spec),
    )


def _frozen_models(spec: ClusterJob) -> FrozenModels | None:
    """What features can be computed with before the trainer: the models of a job that pretrains an encoder."""
    if not isinstance(spec, PretrainEncoder):
        return None
    return FrozenModels(spec.backbone, spec.method.encoder.clip, spec.method.mask_reference)


def absolute_paths(spec: ClusterJob) -> dict[str, Any]:
    """The keys that every such job has, with paths that hold in a worker, which runs in a folder of its own."""
    update: dict[str, Any] = {
        "data": spec.data.with_places(resolve_path),
        "runs": resolve_path(spec.runs),
        "backbone": path_or_name(spec.backbone),
    }
    if spec.grid is not None:
        places = tuple(resolve_path(place) for place in spec.grid.shards)
        update["grid"] = spec.grid.model_copy(update={"shards": places})
    return update


def _prepare_folder(folders: Folders, source: str) -> None:
    try:
        folders.run.mkdir(parents=True, exist_ok=True)
        folders.stop.unlink(missing_ok=True)
        temporary = folders.run / ".job.yaml.partial"
        temporary.write_text(source)
        os.replace(temporary, folders.run / "job.yaml")
    except OSError as error:
        raise StorageError(f"making the folder of the run {folders.run}: {error.strerror}; check `runs`") from error


def _raise_if_stopped(spec: ClusterJob, folders: Folders) -> None:
    newest = latest_position(folders.checkpoints)
    step = newest.step if newest else 0
    if step < spec.training.steps:
        raise StoppedError(
            f"{spec.name}: stopped at step {step} of {spec.training.steps}, as asked; submit it again to go on"
        )


def _open_tracking(spec: ClusterJob, folders: Folders, source: str) -> TrackedRun | None:
    if not spec.tracking.enabled:
        return None
    tracked = TrackedRun.open(spec.tracking, folders.run, spec.name)
    tracked.describe(spec.model_dump(mode="json"), source)
    if spec.tracking.system_metrics:
        tracked.watch_system()
    return tracked


def _track(tracked: TrackedRun, folders: Folders, record: dict[str, Any]) -> None:
    if "samples" in record:
        tracked.log_file(folders.run / record["samples"], "samples")
    elif "loss" in record:
        values = {name: value for name, value in record.items() if name != "step"}
        tracked.log_metrics(record["step"], values | quarantine.metrics(folders.quarantine))


@contextmanager
def _stop_on_sigterm(folders: Folders) -> Iterator[None]:
    """SIGTERM (`ray job stop`, preemption) has the workers write a checkpoint and end."""
    before = signal.signal(signal.SIGTERM, lambda *_: folders.stop.touch())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
