"""The section `kube` of a job file: what `imprint submit --kube` asks of Kubernetes for it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from imprint.config.base import Section

Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$")]
"""A quantity of Kubernetes, such as 8Gi or 500m."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=63)]


class KubeSpec(Section):
    """Image, queue and pods. Pods get what the job's own sections ask of the cluster, where nothing is said here."""

    image: str | None = Field(
        None, min_length=1, description="null: imprint:<version>-cuda for jobs with GPUs, else imprint:<version>-cpu"
    )
    namespace: Name = "imprint"
    queue: Name | None = Field("imprint", description="Kueue's LocalQueue: all pods start together; null: no queue")
    priority: Name = Field("imprint-training", description="the pods' PriorityClass")
    workers: int | None = Field(
        None, ge=0, description="worker pods; null: one for each trainer or actor, none for jobs of one process"
    )
    cpus: float | None = Field(None, gt=0, description="of each worker pod; null: its share of what the job asks")
    gpus: int | None = Field(None, ge=0, description="of each worker pod; null: its share of what the job asks")
    memory: Quantity = Field("8Gi", description="of each worker pod, Ray's object store included")
    shared_memory: Quantity = Field("2Gi", description="/dev/shm of each pod, where Ray keeps objects")
    head_cpus: float = Field(2, gt=0, description="of the head pod, which runs the driver")
    head_memory: Quantity = "6Gi"
    scratch: Quantity = Field("20Gi", description="/tmp of each pod: Ray's session, unpacked files, spilled objects")
    claim: Name = Field("imprint-data", description="PersistentVolumeClaim with data/ and runs/, seen by every pod")
    tracking_uri: str | None = Field(
        "http://imprint-mlflow:5000", description="MLflow, where tracking.uri says none; null: leave it"
    )
    env: dict[str, str] = Field({}, description="environment of every pod; no secrets")
    secrets: tuple[Name, ...] = Field(
        ("imprint-object-store-client",), description="Secrets whose keys become environment variables of every pod"
    )
    node_selector: dict[str, str] = Field({}, description="labels of the nodes for worker pods")
    internet: bool = Field(False, description="pods may reach HTTPS outside of the cluster, as for weights from a hub")
    retries: int = Field(2, ge=0, description="whole new clusters that are tried when the job fails")
    deadline_s: int | None = Field(None, gt=0, description="the job is ended past this; null: never")
    keep_s: int = Field(600, ge=0, description="pods stay so long after the job, for a look")


Kube = Annotated[KubeSpec, Field(exclude=True, description="where and how it runs on Kubernetes; decides no result")]
"""Excluded from what a spec dumps: no digest of results and no tracked parameter depends on it."""
