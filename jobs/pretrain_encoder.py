"""`pretrain_encoder`: shards -> captions -> masks -> Ray Train workers -> an encoder.

The driver checks what can be checked before anything starts, follows the run's journal to the terminal and to
MLflow, and logs the finished encoder. The workers (`train_worker`) train and write checkpoints and the encoder.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import torch

from imprint.backbone import Backbone
from imprint.config.jobs.pretrain import PretrainEncoder
from imprint.config.paths import resolve_path
from imprint.errors import StorageError, TrainingError
from imprint.features.clip import ClipFeatures
from imprint.jobs.progress import ProgressLine
from imprint.jobs.ray_train import Folders, WorkerHooks, connect, fit, micro_batches, note_start, start_worker
from imprint.jobs.sample_grid import SampleGrid
from imprint.methods.e4t.artifact import find_encoder, load_encoder, load_state, save_encoder
from imprint.methods.e4t.objective import E4TObjective
from imprint.pipelines import quarantine
from imprint.pipelines.shards import Shard, check_present, counted, find_sources
from imprint.pipelines.stream import StreamPlan
from imprint.tracking.journal import JournalFollower, write_journal
from imprint.tracking.run import TrackedRun
from imprint.training.checkpoint import TrainingState, latest_checkpoint
from imprint.training.ema import Ema
from imprint.training.engines.base import Engine
from imprint.training.engines.deepspeed import DeepSpeedEngine
from imprint.training.engines.torch import TorchEngine
from imprint.training.loop import train

log = logging.getLogger(__name__)


class StoppedError(TrainingError):
    """The run saved and stopped before its end because it was asked to."""


def run(spec: PretrainEncoder, *, job_file: Path | None, source: str) -> None:
    """Run the job to its end, or on from where a run of the same name stopped.

    Raises:
        DataError, ShardError: shards are missing or cut; nothing was started.
        StorageError: the run's folder may not be written.
        TrainingError: workers were lost too often, or the loss is not finite.
    """
    spec = with_absolute_paths(spec)
    folders = Folders(Path(spec.runs) / spec.name)
    _prepare_folder(folders, source)
    if _is_finished(spec, folders):
        log.info("%s: all %d steps are done; %s", spec.name, spec.training.steps, folders.run / "encoder")
        return
    with ThreadPoolExecutor(1) as threads:
        opening = threads.submit(_open_tracking, spec, folders, source)  # some seconds, while Ray starts
        shards = counted(find_sources(spec.data))
        check_present(shards)
        connect()
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
                train_worker,
                {"spec": spec.model_dump(mode="json")},
                spec.cluster,
                folders,
                partial(stream_plan, spec, tuple(shards), folders),
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
            _finish_tracking(tracked, folders, status)
    log.info("the encoder is in %s", folders.run / "encoder")


def with_absolute_paths(spec: PretrainEncoder) -> PretrainEncoder:
    """The spec with paths that hold in a worker, which runs in a folder of its own."""
    data = spec.data.with_places(resolve_path)
    update: dict[str, Any] = {
        "data": data, "runs": resolve_path(spec.runs), "backbone": _local(spec.backbone),
        "initialize_from": spec.initialize_from and _local(spec.initialize_from),
    }  # fmt: skip
    if spec.grid is not None:
        update["grid"] = spec.grid.model_copy(
            update={"shards": tuple(resolve_path(place) for place in spec.grid.shards)}
        )
    encoder = spec.method.encoder.model_copy(update={"clip": _local(spec.method.encoder.clip)})
    update["method"] = spec.method.model_copy(update={"encoder": encoder})
    return spec.model_copy(update=update)


def _local(name: str) -> str:
    """A path if something is there, else the name as it is (embedded, or a hub id)."""
    path = resolve_path(name)
    return path if Path(path).exists() else name


def stream_plan(spec: PretrainEncoder, shards: tuple[Shard, ...], folders: Folders) -> StreamPlan:
    """The rows that are still to be trained on, after the newest checkpoint."""
    resume = latest_checkpoint(folders.checkpoints)
    batch = spec.training.batch_size
    return StreamPlan(
        shards=shards,
        data=spec.data,
        seed=spec.seed,
        batch_size=batch,
        start=resume.samples if resume else 0,
        stop=spec.training.steps * batch,
        quarantine=str(folders.quarantine),
    )


def train_worker(config: dict[str, Any]) -> None:
    """One rank: build, train, and on rank 0 write the encoder."""
    began = time.perf_counter()
    spec = PretrainEncoder.model_validate(config["spec"])
    folders = Folders(Path(spec.runs) / spec.name)
    device = start_worker(spec.cluster)
    torch.manual_seed(spec.seed)  # every rank starts from the same weights
    backbone = Backbone.load(spec.backbone, device=device)
    clip = ClipFeatures.load(spec.method.encoder.clip, device=device)
    objective = E4TObjective(backbone, spec.method, clip)
    resume = latest_checkpoint(folders.checkpoints)
    if spec.initialize_from and resume is None:
        start_from(objective, spec.initialize_from)
    engine = make_engine(objective, spec)
    batches = micro_batches(
        ray.train.get_dataset_shard("train"),
        spec.training.micro_batch_size(engine.world_size),
        prefetch=spec.data.prefetch_batches,
        first_index=resume.samples if resume else 0,
    )
    if engine.rank == 0:
        note_start(folders, resume.step if resume else 0, time.perf_counter() - began)
    state = train(
        batches, engine, spec.training, seed=spec.seed, resume=resume,
        checkpoints=(folders.checkpoints, spec.checkpoint), hooks=_PretrainHooks(spec, folders, objective, engine),
    )  # fmt: skip
    if engine.rank == 0 and state.step == spec.training.steps:
        _save(state, spec, folders, backbone, clip)


def start_from(objective: E4TObjective, encoder: str) -> None:
    """Begin with the weights of an encoder that was pretrained before.

    Raises:
        CheckpointError: there is none, or it belongs to another backbone, CLIP or architecture.
    """
    parts = objective.parts
    pretrained = load_encoder(encoder, parts.backbone, clip=parts.clip)
    source = find_encoder(encoder)
    load_state(objective.encoder, "", pretrained.encoder.state_dict(), source)
    if objective.offsets is not None:
        offsets = pretrained.offsets.state_dict() if pretrained.offsets is not None else {}
        load_state(objective.offsets, "", offsets, source)
    objective.requires_grad_(True)


def make_engine(objective: E4TObjective, spec: PretrainEncoder) -> Engine:
    """The engine that the job file names."""
    if spec.engine.name == "torch":
        return TorchEngine(objective, spec.engine, spec.training.optimizer)
    return DeepSpeedEngine(
        objective, spec.engine, spec.training.optimizer, accumulation=spec.training.gradient_accumulation
    )


class _PretrainHooks(WorkerHooks):
    """Draws the grid as well, from the average where one is kept."""

    def __init__(self, spec: PretrainEncoder, folders: Folders, objective: E4TObjective, engine: Engine) -> None:
        super().__init__(folders, spec.training.steps, spec.training.log_every)
        self.engine = engine
        self.every = spec.grid.every if spec.grid else None
        self.grid: SampleGrid | None = None
        if spec.grid and self.rank == 0:
            self.grid = SampleGrid(spec.grid, objective, spec.data.image_size)

    def on_step(self, step: int, ema: Ema | None) -> None:
        super().on_step(step, ema)
        if self.every is None or (step % self.every and step != self.total_steps):
            return
        state = ema.shadow if ema else self.engine.parameters()  # a collective call under ZeRO: on every rank
        if self.grid is not None:
            path = self.folders.samples / f"step-{step:08d}.png"
            self.grid.draw(state, path)
            write_journal(self.folders.run, {"step": step, "samples": str(path.relative_to(self.folders.run))})


def _save(
    state: TrainingState, spec: PretrainEncoder, folders: Folders, backbone: Backbone, clip: ClipFeatures
) -> None:
    provenance = {
        "run": spec.name, "steps": state.step, "samples": state.samples, "shards": list(spec.data.places),
        "averaged": state.ema is not None,
    }  # fmt: skip
    save_encoder(
        folders.run / "encoder", state.ema or state.parameters, spec.method, backbone, clip, provenance=provenance
    )


# -- the driver's side --------------------------------------------------------------------------------------


def _prepare_folder(folders: Folders, source: str) -> None:
    try:
        folders.run.mkdir(parents=True, exist_ok=True)
        folders.stop.unlink(missing_ok=True)
        temporary = folders.run / ".job.yaml.partial"
        temporary.write_text(source)
        os.replace(temporary, folders.run / "job.yaml")
    except OSError as error:
        raise StorageError(f"making the folder of the run {folders.run}: {error.strerror}; check `runs`") from error


def _is_finished(spec: PretrainEncoder, folders: Folders) -> bool:
    newest = latest_checkpoint(folders.checkpoints)
    return newest is not None and newest.step >= spec.training.steps and (folders.run / "encoder").is_dir()


def _raise_if_stopped(spec: PretrainEncoder, folders: Folders) -> None:
    newest = latest_checkpoint(folders.checkpoints)
    step = newest.step if newest else 0
    if step < spec.training.steps:
        raise StoppedError(
            f"{spec.name}: stopped at step {step} of {spec.training.steps}, as asked; submit it again to go on"
        )


def _open_tracking(spec: PretrainEncoder, folders: Folders, source: str) -> TrackedRun | None:
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


def _finish_tracking(tracked: TrackedRun, folders: Folders, status: str) -> None:
    if folders.quarantine.is_dir():
        tracked.log_file(folders.quarantine, "quarantine")
    if status == "FINISHED" and (folders.run / "encoder").is_dir():
        tracked.log_encoder(folders.run / "encoder")
    tracked.finish(status)


@contextmanager
def _stop_on_sigterm(folders: Folders) -> Iterator[None]:
    """SIGTERM (`ray job stop`, preemption) has the workers write a checkpoint and end."""
    before = signal.signal(signal.SIGTERM, lambda *_: folders.stop.touch())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
