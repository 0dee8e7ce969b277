"""What runs each kind of job. The job files (`*.yaml`) lie beside these modules."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Protocol

from imprint.config.base import Section
from imprint.errors import ConfigError

# kind -> "module:function"; a string, so that checking a job file imports neither Ray nor torch.
RUNNERS: dict[str, str] = {
    "benchmark": "imprint.jobs.benchmark:run",
    "dreambooth": "imprint.jobs.cluster_jobs:dreambooth",
    "evaluate": "imprint.jobs.evaluate:run",
    "finetune_joint": "imprint.jobs.cluster_jobs:finetune_joint",
    "prepare_faces": "imprint.jobs.prepare:run_faces",
    "prepare_objects": "imprint.jobs.prepare:run_objects",
    "prepare_shards": "imprint.jobs.prepare_shards:run",
    "pretrain_encoder": "imprint.jobs.cluster_jobs:pretrain_encoder",
    "search": "imprint.jobs.search:run",
    "train_backbone": "imprint.jobs.tiny:run_backbone",
    "train_face_attributes": "imprint.jobs.train_face_attributes:run",
    "train_super_resolution": "imprint.jobs.train_super_resolution:run",
    "train_tiny_clip": "imprint.jobs.tiny:run_clip",
    "train_tiny_vae": "imprint.jobs.tiny:run_vae",
}


class Runner(Protocol):
    """Runs one job to its end; `source` is the text of the job file with its overrides, to keep beside the results."""

    def __call__(self, spec: Section, *, job_file: Path | None, source: str) -> None: ...


def load_runner(kind: str) -> Runner:
    """Import and return what runs jobs of `kind`.

    Raises:
        ConfigError: this installation cannot run jobs of `kind`.
    """
    if kind not in RUNNERS:
        raise ConfigError(f"job {kind!r} is known but nothing runs it here, expected one of {sorted(RUNNERS)}")
    module, _, function = RUNNERS[kind].partition(":")
    runner: Runner = getattr(import_module(module), function)
    return runner
