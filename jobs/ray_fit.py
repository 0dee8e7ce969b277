"""A training run on Ray Train as its driver sees it: connect, start the workers, hand back what went wrong.

Nothing here imports torch or a model: Ray Train's controller would load them for nothing, and a killed run be back so
much later.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.data.context import DataContext
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from imprint.config.training import ClusterSpec
from imprint.errors import ImprintError, TrainingError
from imprint.jobs.early_stream import EarlyStream
from imprint.jobs.process_group import ProcessGroupConfig
from imprint.pipelines.stream import StreamDataConfig, StreamPlan

STOP = "stop"  # a file of this name in the run's folder asks the workers to save and stop
_LOCAL_CPUS = 2
# Ray gives up on its own processes after half a minute or one, which is short on a busy machine.
_PATIENCE = {
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300",
    "RAY_worker_register_timeout_seconds": "300",
}


@dataclass(frozen=True)
class Folders:
    """Where a run keeps what; every worker must see it."""

    run: Path

    @property
    def checkpoints(self) -> Path:
        return self.run / "checkpoints"

    @property
    def quarantine(self) -> Path:
        return self.run / "quarantine"

    @property
    def samples(self) -> Path:
        return self.run / "samples"

    @property
    def stop(self) -> Path:
        return self.run / STOP


def connect(*, dashboard: bool = False) -> None:
    """Connect to the cluster that RAY_ADDRESS names, as in a submitted job; without one, start Ray here.

    `dashboard` starts Ray's dashboard with it, on loopback.

    Raises:
        TrainingError: no cluster answers at RAY_ADDRESS.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": True}
    if "RAY_ADDRESS" not in os.environ:
        for name, seconds in _PATIENCE.items():
            os.environ.setdefault(name, seconds)
        options |= {"num_cpus": max(_LOCAL_CPUS, os.cpu_count() or 1), "include_dashboard": dashboard}
    try:
        ray.init(**options)
    except Exception as error:  # Ray raises bare Exceptions where its processes do not come up
        place = os.environ.get("RAY_ADDRESS")
        doing = f"connecting to Ray at {place}" if place else "starting Ray on this machine"
        hint = "start the cluster, or unset RAY_ADDRESS to run on this machine alone" if place else "see /tmp/ray"
        raise TrainingError(f"{doing}: {error}; {hint}") from error
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def fit(
    worker: str,
    config: dict[str, Any],
    cluster: ClusterSpec,
    folders: Folders,
    make_plan: Callable[[], StreamPlan],
) -> None:
    """Run `worker` ("module:function") on every rank, again from the newest checkpoint when one is lost, until it ends.

    `make_plan` is called at every start of the workers: it reads the position from the newest checkpoint.

    Raises:
        ImprintError: the one that a worker or the data plane raised; it is not retried.
        TrainingError: more workers were lost than `cluster.max_failures`.
    """
    trainer = DataParallelTrainer(
        _call,
        train_loop_config={**config, "worker": worker},
        backend_config=ProcessGroupConfig(backend="nccl" if cluster.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=(
                cluster.max_workers
                if cluster.min_workers == cluster.max_workers
                else (cluster.min_workers, cluster.max_workers)
            ),
            elastic_resize_monitor_interval_s=cluster.resize_interval_s,
            use_gpu=bool(cluster.gpus_per_worker),
            resources_per_worker={"CPU": cluster.cpus_per_worker}
            | ({"GPU": cluster.gpus_per_worker} if cluster.gpus_per_worker else {}),
        ),
        run_config=RunConfig(
            name=folders.run.name,
            storage_path=str(folders.run / "ray"),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            callbacks=[StopAtOurErrors()],
        ),
        datasets={"train": make_plan},
        dataset_config=StreamDataConfig(),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        ours = our_error(error)
        if ours is not None:
            raise ours from error
        raise TrainingError(
            f"training on Ray: {_last_line(error)}; workers were lost more than cluster.max_failures="
            f"{cluster.max_failures} times. Submit again to go on from the last checkpoint"
        ) from error


def _call(config: dict[str, Any]) -> None:
    """What every rank runs: `config` gets the rank's "stream"."""
    config = {**config, "stream": EarlyStream.of_this_worker(config["spec"])}
    module, _, name = config["worker"].partition(":")
    gc.disable()  # the collector takes a sixth of the imports' time, and finds nothing
    worker = getattr(import_module(module), name)
    gc.enable()
    worker(config)


class StopAtOurErrors(UserCallback):
    """An error of ours (bad data, a loss that is not finite) comes back at every retry, so Ray must not retry it."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            ours = our_error(error)
            if ours is not None:
                raise ours


def our_error(error: BaseException | None) -> ImprintError | None:
    """The ImprintError inside an error of Ray, whichever way it is wrapped."""
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        current = queue.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, ImprintError):
            # Ray's own subclass of both errors does not pickle; give the plain one back.
            kind = next(k for k in type(current).__mro__ if k.__module__ == ImprintError.__module__)
            return kind(current.message, **current.where)
        queue += [getattr(current, name, None) for name in _WRAPPED]
        queue += list(getattr(current, "worker_failures", {}).values())
    return None


_WRAPPED = ("__cause__", "__context__", "cause", "_base_exc", "controller_failure")


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
