"""One MLflow run for one training run, however often it is stopped and goes on."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imprint.config.training import TrackingSpec
from imprint.errors import TrainingError
from imprint.folders import library_versions

if TYPE_CHECKING:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)
_RECORD = "mlflow.json"
_MAX_PARAM = 6000  # characters that MLflow keeps of a parameter's value
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s'\"]+@")


class TrackedRun:
    """Metrics, files and the end state of a run. A failing server is named in the log and never stops training."""

    def __init__(self, client: MlflowClient, run_id: str, uri: str) -> None:
        self.client, self.run_id, self.uri = client, run_id, uri
        self._monitor: SystemMetricsMonitor | None = None

    @classmethod
    def open(cls, spec: TrackingSpec, folder: Path, name: str) -> TrackedRun:
        """The run that `folder` remembers, or a new one: without a URI in a SQLite file beside the runs.

        Raises:
            TrainingError: the tracking server cannot be reached.
        """
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        uri = spec.uri or f"sqlite:///{folder.parent / 'mlflow.db'}"
        try:
            client = MlflowClient(uri)
            run_id = _remembered(client, folder / _RECORD)
            if run_id is None:
                experiment = client.get_experiment_by_name(spec.experiment)
                artifacts = None if spec.uri else (folder.parent / "mlartifacts").as_uri()
                experiment_id = (
                    experiment.experiment_id if experiment else client.create_experiment(spec.experiment, artifacts)
                )
                run_id = client.create_run(experiment_id, run_name=name).info.run_id
                record = {"run_id": run_id, "uri": without_credentials(uri), "experiment_id": experiment_id}
                (folder / _RECORD).write_text(json.dumps(record))
            else:
                client.update_run(run_id, status="RUNNING")
        except (mlflow.MlflowException, OSError) as error:
            raise TrainingError(
                f"opening the MLflow run {name!r} at {without_credentials(uri)}: {error}; check tracking.uri, or set "
                "tracking.enabled=false"
            ) from error
        return cls(client, run_id, uri)

    def describe(self, spec: Mapping[str, Any], source: str) -> None:
        """Log the job file, its values as parameters, the git commit and the versions of libraries."""
        from mlflow.entities import Param, RunTag

        values = {key: value for key, value in flatten(spec).items() if not key.startswith("tracking.uri")}
        with self._forgiving("describing the run"):
            known = self.client.get_run(self.run_id).data.params
            params = [Param(k, v[:_MAX_PARAM]) for k, v in values.items() if k not in known]
            tags = {f"version.{name}": version for name, version in library_versions().items()}
            tags["git.commit"] = git_commit()
            for first in range(0, len(params), 100):  # MLflow takes a hundred at a time
                self.client.log_batch(self.run_id, params=params[first : first + 100])
            self.client.log_batch(self.run_id, tags=[RunTag(k, v) for k, v in tags.items()])
            self.client.log_text(self.run_id, without_credentials(source), "job.yaml")

    def log_metrics(self, step: int, record: Mapping[str, float]) -> None:
        """Log one report of the training loop."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in record.items() if math.isfinite(value)]
        with self._forgiving("logging metrics"):
            self.client.log_batch(self.run_id, metrics=metrics)

    def log_file(self, path: Path, place: str | None = None) -> None:
        """Log a file, or a folder with all that is in it, under the artifact folder `place`."""
        with self._forgiving(f"logging {path}"):
            if path.is_dir():
                self.client.log_artifacts(self.run_id, str(path), place)
            else:
                self.client.log_artifact(self.run_id, str(path), place)

    def log_encoder(self, folder: Path) -> None:
        """Log a finished encoder as an MLflow model; it is loaded by code of ours, so nothing is pickled."""
        import mlflow

        with self._forgiving("logging the encoder"):
            before = mlflow.get_tracking_uri()
            mlflow.set_tracking_uri(self.uri)
            try:
                with mlflow.start_run(run_id=self.run_id, log_system_metrics=False):
                    mlflow.pyfunc.log_model(
                        name="encoder", loader_module="imprint.tracking.encoder_model", data_path=str(folder),
                        pip_requirements=[f"imprint=={library_versions()['imprint']}"],
                    )  # fmt: skip
            finally:
                mlflow.set_tracking_uri(before)

    def watch_system(self) -> None:
        """Sample CPU, memory, disk, network and GPUs of this machine in a thread, until `finish`."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = SystemMetricsMonitor(
            self.run_id, sampling_interval=10, samples_before_logging=1, resume_logging=True, tracking_uri=self.uri
        )
        self._monitor.start()

    def finish(self, status: str) -> None:
        """End the run as "FINISHED", "KILLED" (stopped as asked) or "FAILED"."""
        with self._forgiving("ending the run"):
            if self._monitor is not None:
                self._monitor.finish()
            self.client.set_terminated(self.run_id, status)

    def _forgiving(self, doing: str) -> _Forgiving:
        return _Forgiving(doing)


class _Forgiving:
    """Names an error of the tracking server in the log and goes on."""

    def __init__(self, doing: str) -> None:
        self.doing = doing

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if error is None or not isinstance(error, Exception):
            return False
        log.warning("MLflow, %s: %s", self.doing, error)
        return True


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as `outer.inner` keys with text values; lists as JSON."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return flat


def without_credentials(text: str) -> str:
    """The text with `user:password@` taken out of every URL."""
    return _CREDENTIALS.sub("", text)


def git_commit() -> str:
    """The commit of the checkout that Imprint runs from, `-dirty` where it was changed; "unknown" outside of git."""
    here = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=here, capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return described.stdout.strip()


def _remembered(client: MlflowClient, record: Path) -> str | None:
    from mlflow import MlflowException

    try:
        run_id = str(json.loads(record.read_text())["run_id"])
        client.get_run(run_id)
    except (OSError, ValueError, KeyError, MlflowException):
        return None
    return run_id
