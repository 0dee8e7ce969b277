"""The jobs that train on a cluster, as their drivers see them: shards -> captions -> masks -> Ray Train workers.

`pretrain_encoder` leaves `<run>/encoder`, `finetune_joint` leaves `<run>/network`, `dreambooth` leaves `<run>/concept`.
The driver (`imprint.jobs.ray_run`) checks what can be checked before anything starts, and follows the run's journal to
the terminal and to MLflow. The workers are named, and not imported: models come with them, and a driver needs none.
"""

from __future__ import annotations

from pathlib import Path

from imprint.config.jobs.dreambooth import DreamBooth
from imprint.config.jobs.finetune import FinetuneJoint
from imprint.config.jobs.pretrain import PretrainEncoder
from imprint.config.paths import path_or_name, resolve_path
from imprint.jobs.ray_run import ClusterRun, absolute_paths
from imprint.pipelines.triplets import CrossReference
from imprint.tracking.run import TrackedRun

_LOGGED_BYTES = 100 * 2**20  # of a concept: adapters of any model, all weights of a small one


def pretrain_encoder(spec: PretrainEncoder, *, job_file: Path | None, source: str) -> None:
    """Run the job to its end, or on from where a run of the same name stopped.

    Raises:
        DataError, ShardError: shards are missing or cut; nothing was started.
        StorageError: the run's folder may not be written.
        TrainingError: workers were lost too often, or the loss is not finite.
    """
    spec = with_absolute_encoder(spec)
    if spec.in_process:
        from imprint.jobs.pretrain_encoder import run_here

        run_here(spec, source)
        return
    run = ClusterRun("imprint.jobs.pretrain_encoder:train_worker", "encoder", TrackedRun.log_encoder)
    run.drive(spec, source)


def finetune_joint(spec: FinetuneJoint, *, job_file: Path | None, source: str) -> None:
    """As `pretrain_encoder`, on triplets."""
    triplets = spec.triplets
    cross_reference = CrossReference(triplets.cross_reference, triplets.domain_sources, triplets.identity_key)
    run = ClusterRun("imprint.jobs.finetune_joint:train_worker", "network", log_network, cross_reference)
    run.drive(with_absolute_network(spec), source)


def dreambooth(spec: DreamBooth, *, job_file: Path | None, source: str) -> None:
    """As `pretrain_encoder`, on the pictures of one subject."""
    run = ClusterRun("imprint.jobs.dreambooth:train_worker", "concept", log_concept)
    run.drive(with_absolute_cache(spec), source)


def with_absolute_encoder(spec: PretrainEncoder) -> PretrainEncoder:
    """The spec with paths that hold in a worker, which runs in a folder of its own."""
    encoder = spec.method.encoder.model_copy(update={"clip": path_or_name(spec.method.encoder.clip)})
    update = absolute_paths(spec) | {
        "initialize_from": spec.initialize_from and path_or_name(spec.initialize_from),
        "method": spec.method.model_copy(update={"encoder": encoder}),
    }
    return spec.model_copy(update=update)


def with_absolute_network(spec: FinetuneJoint) -> FinetuneJoint:
    """The spec with paths that hold in a worker."""
    encoder = spec.method.object_encoder
    encoder = encoder.model_copy(update={"clip": path_or_name(encoder.clip)})
    method = spec.method.model_copy(update={"object_encoder": encoder})
    return spec.model_copy(update=absolute_paths(spec) | {"method": method})


def with_absolute_cache(spec: DreamBooth) -> DreamBooth:
    """The spec with paths that hold in a worker."""
    prior = spec.method.prior.model_copy(update={"cache_dir": resolve_path(spec.method.prior.cache_dir)})
    method = spec.method.model_copy(update={"prior": prior})
    return spec.model_copy(update=absolute_paths(spec) | {"method": method})


def log_concept(tracked: TrackedRun, folder: Path) -> None:
    """Log the concept; only its record where its tensors are those of a large model, which stay where they are."""
    size = sum(file.stat().st_size for file in folder.iterdir())
    if size <= _LOGGED_BYTES:
        tracked.log_file(folder, folder.name)
    else:
        tracked.log_file(folder / "concept.json", folder.name)


def log_network(tracked: TrackedRun, folder: Path) -> None:
    """Log the attentions and their record; the model's folder is as large as its backbone, and stays where it is."""
    tracked.log_file(folder / "parts", f"{folder.name}/parts")
