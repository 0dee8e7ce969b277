"""A job file as a RayJob of KubeRay: a cluster of its own, gone when the job is over, with its pods from the job file.

Pods have no root, no writable root file system and no more rights than they use; tests hold them to that. Nothing here
contacts a cluster; `imprint.jobs.kubectl` does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import yaml

from imprint.config.base import Section
from imprint.config.jobs.benchmark import Sitting
from imprint.config.jobs.cluster import ClusterJob
from imprint.config.jobs.evaluate import Evaluate
from imprint.config.jobs.prepare import Prepare
from imprint.config.jobs.shards import PrepareShards
from imprint.config.jobs.tiny import LocalTraining
from imprint.config.kube import KubeSpec
from imprint.config.load import JobFile, effective_data
from imprint.config.paths import ROOT_VARIABLE
from imprint.errors import ConfigError

ROOT = "/mnt/imprint"
HOME = "/home/imprint"
JOB_FOLDER = "/etc/imprint/job"
JOB_FILE = f"{JOB_FOLDER}/job.yaml"
ROLE_LABEL = "imprint.dev/role"
INTERNET_LABEL = "imprint.dev/internet"
TOKEN_SECRET = "imprint-ray-token"
_USER = 1000  # of the image
_LONGEST_NAME = 47  # KubeRay: the names of what it makes for a RayJob are longer, and labels end at 63
_READ_TASKS = 2  # that run at a time beside the trainers
_STOP_S = 180  # a trainer writes a checkpoint when it is told to end


@dataclass(frozen=True)
class Needs:
    """What a job asks of its workers, all together, and over how many pods that is spread; 0: the head alone."""

    pods: int
    cpus: float = 0.0
    gpus: float = 0.0
    head_cpus: float = 0.0


def needs_of(spec: Section) -> Needs:
    """What the sections of a job ask of a cluster."""
    match spec:
        case ClusterJob():
            return _needs_of_training(spec)
        case Evaluate() | Sitting():
            share = spec.cluster
            cpus = max(share.cpus_per_actor, 0 if share.gpus_per_actor else share.threads_per_actor)
            return Needs(share.actors, share.actors * cpus, share.actors * share.gpus_per_actor)
        case PrepareShards() if spec.run_on == "ray":
            stages = [stage for stage in (spec.captions, spec.masks) if stage is not None]
            cpus = _READ_TASKS * spec.reader.cpus + sum(_most(one) * one.cpus for one in stages)
            return Needs(1, cpus, sum(_most(one) * one.gpus for one in stages))
        case LocalTraining():
            return Needs(0, head_cpus=spec.threads)
        case _:
            return Needs(0)


def _needs_of_training(spec: ClusterJob) -> Needs:
    workers = spec.cluster.workers
    most = workers if isinstance(workers, int) else max(workers)
    each = max(spec.cluster.cpus_per_worker, 0 if spec.cluster.gpus_per_worker else spec.cluster.threads_per_worker)
    stages = (spec.data.captions, spec.data.masks)
    cpus = most * each + sum(_most(stage) * stage.cpus for stage in stages) + _READ_TASKS * spec.data.reader.cpus
    gpus = most * spec.cluster.gpus_per_worker + sum(_most(stage) * stage.gpus for stage in stages)
    return Needs(most, cpus, gpus)


def _most(stage: Any) -> int:
    return stage.max_actors or stage.actors


def job_name(name: str) -> str:
    """`name` as a RayJob may be called: small letters, digits and -, a letter first."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    plain = plain if plain[:1].isalpha() else f"job-{plain}".rstrip("-")
    return plain[:_LONGEST_NAME].rstrip("-")


def render(job: JobFile, overrides: Sequence[str] = (), *, name: str | None = None) -> list[dict[str, Any]]:
    """The manifests of a job: a ConfigMap with the job file as it is after the overrides, and the RayJob.

    Raises:
        ConfigError: the job cannot run on Kubernetes as its section `kube` says.
    """
    kube, needs = _kube_of(job), needs_of(job.spec)
    chosen = job_name(name or str(getattr(job.spec, "name", job.path.stem)))
    pods = needs.pods if kube.workers is None else kube.workers
    if needs.pods and not pods:
        raise ConfigError(f"{job.path}: kube.workers: got 0, expected 1 or more; a {job.kind} job runs on workers")
    data = _data_for_kube(job, overrides, kube, max(kube.head_cpus, needs.head_cpus))
    note = f"# {job.path.as_posix()}" + "".join(f"\n# override: {override!r}" for override in overrides)
    labels = {"app.kubernetes.io/part-of": "imprint", "app.kubernetes.io/component": "job", "imprint.dev/job": job.kind}
    config_map = {
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": chosen, "namespace": kube.namespace, "labels": labels},
        "data": {"job.yaml": f"{note}\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000)}"},
    }  # fmt: skip
    pods_of = _Pods(kube, chosen, job.kind, _image_of(kube, needs))
    queue = {} if kube.queue is None else {"kueue.x-k8s.io/queue-name": kube.queue}
    ray_job = {
        "apiVersion": "ray.io/v1", "kind": "RayJob",
        "metadata": {"name": chosen, "namespace": kube.namespace, "labels": {**labels, **queue}},
        "spec": {
            "entrypoint": f"imprint run {JOB_FILE}",
            "submissionMode": "K8sJobMode",
            "shutdownAfterJobFinishes": True,  # a job in a queue must give its quota back
            "ttlSecondsAfterFinished": kube.keep_s,
            "backoffLimit": kube.retries,
            **({} if kube.deadline_s is None else {"activeDeadlineSeconds": kube.deadline_s}),
            "submitterPodTemplate": pods_of.submitter(),
            "rayClusterSpec": pods_of.cluster(needs, pods),
        },
    }  # fmt: skip
    return [config_map, ray_job]


def to_yaml(manifests: Sequence[Mapping[str, Any]]) -> str:
    """YAML documents, with texts of several lines as blocks."""
    return yaml.dump_all(manifests, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as `|` blocks, and no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def _kube_of(job: JobFile) -> KubeSpec:
    kube = getattr(job.spec, "kube", None)
    if not isinstance(kube, KubeSpec):
        raise ConfigError(f"{job.path}: a {job.kind} job has no section kube; it does not run on Kubernetes")
    return kube


def _image_of(kube: KubeSpec, needs: Needs) -> str:
    has_gpus = kube.gpus if kube.gpus is not None else needs.gpus
    return kube.image or f"imprint:{version('imprint')}-{'cuda' if has_gpus else 'cpu'}"


def _data_for_kube(job: JobFile, overrides: Sequence[str], kube: KubeSpec, head_cpus: float) -> dict[str, Any]:
    """The job file's values, with what only a pod knows: where MLflow is, and how many cores it has."""
    data = effective_data(job.path, overrides)
    tracking = getattr(job.spec, "tracking", None)
    if kube.tracking_uri and tracking is not None and tracking.enabled and tracking.uri is None:
        data["tracking"] = {**(data.get("tracking") or {}), "uri": kube.tracking_uri}
    if isinstance(job.spec, Prepare) and job.spec.workers == 0:
        data["workers"] = math.ceil(head_cpus)  # a container sees all cores of its node
    return data


@dataclass(frozen=True)
class _Pods:
    """Templates of the pods of one job."""

    kube: KubeSpec
    name: str
    kind: str
    image: str

    def cluster(self, needs: Needs, pods: int) -> dict[str, Any]:
        """A fixed size: a queue that starts all pods together admits no autoscaler."""
        cpus = max(self.kube.head_cpus, needs.head_cpus)
        head = self._pod("ray-head", {"cpu": _quantity(cpus), "memory": self.kube.head_memory}, head=True)
        spec: dict[str, Any] = {
            "rayVersion": version("ray"),
            "authOptions": {"mode": "token", "secretName": TOKEN_SECRET},
            "headGroupSpec": {
                # With workers the head takes no work: it should outlive what a task does to its pod.
                "rayStartParams": {"num-cpus": "0"} if pods else {},
                "template": head,
            },
        }
        if pods:
            spec["workerGroupSpecs"] = [self._workers(needs, pods)]
        return spec

    def _workers(self, needs: Needs, pods: int) -> dict[str, Any]:
        gpus = math.ceil(needs.gpus / pods) if self.kube.gpus is None else self.kube.gpus
        cpus = max(1, math.ceil(needs.cpus / pods)) if self.kube.cpus is None else self.kube.cpus
        amounts = {"cpu": _quantity(cpus), "memory": self.kube.memory}
        if gpus:
            amounts["nvidia.com/gpu"] = str(gpus)
        template = self._pod("ray-worker", amounts, head=False)
        if self.kube.node_selector:
            template["spec"]["nodeSelector"] = dict(self.kube.node_selector)
        if gpus:
            template["spec"]["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
        return {
            "groupName": "workers", "replicas": pods, "minReplicas": pods, "maxReplicas": pods, "rayStartParams": {},
            "template": template,
        }  # fmt: skip

    def submitter(self) -> dict[str, Any]:
        """The pod that runs `ray job submit`; KubeRay fills in its command."""
        spec = self._base("ray-job-submitter", {"cpu": "500m", "memory": "1Gi"})
        spec["restartPolicy"] = "Never"
        spec["containers"][0]["env"] = [{"name": "HOME", "value": HOME}]
        return {"metadata": {"labels": self._labels("submitter")}, "spec": spec}

    def _pod(self, container: str, amounts: Mapping[str, str], *, head: bool) -> dict[str, Any]:
        spec = self._base(container, amounts)
        spec["terminationGracePeriodSeconds"] = _STOP_S
        spec["volumes"] += [
            {"name": "shared-mem", "emptyDir": {"medium": "Memory", "sizeLimit": self.kube.shared_memory}},
            {"name": "data", "persistentVolumeClaim": {"claimName": self.kube.claim}},
        ]
        main = spec["containers"][0]
        main["volumeMounts"] += [
            {"name": "shared-mem", "mountPath": "/dev/shm"},
            {"name": "data", "mountPath": ROOT},
        ]
        main["env"] = [{"name": key, "value": value} for key, value in self._environment(head).items()]
        main["ports"] = [{"name": "metrics", "containerPort": 8080}]
        if self.kube.secrets:
            main["envFrom"] = [{"secretRef": {"name": secret}} for secret in self.kube.secrets]
        if head:
            spec["volumes"].append({"name": "job", "configMap": {"name": self.name}})
            main["volumeMounts"].append({"name": "job", "mountPath": JOB_FOLDER, "readOnly": True})
            main["ports"] += [
                {"name": "gcs-server", "containerPort": 6379},
                {"name": "dashboard", "containerPort": 8265},
            ]
        return {"metadata": {"labels": self._labels("job")}, "spec": spec}

    def _base(self, container: str, amounts: Mapping[str, str]) -> dict[str, Any]:
        """What every pod has: no rights, two places to write, and the limits."""
        return {
            "priorityClassName": self.kube.priority,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True, "runAsUser": _USER, "runAsGroup": _USER, "fsGroup": _USER,
                "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": container,
                    "image": self.image,
                    "imagePullPolicy": "IfNotPresent",
                    "securityContext": {
                        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "resources": {"requests": dict(amounts), "limits": dict(amounts)},
                    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, {"name": "home", "mountPath": HOME}],
                }
            ],
            "volumes": [
                {"name": "tmp", "emptyDir": {"sizeLimit": self.kube.scratch}},
                {"name": "home", "emptyDir": {"sizeLimit": "1Gi"}},
            ],
        }  # fmt: skip

    def _environment(self, head: bool) -> dict[str, str]:
        fixed = {
            ROOT_VARIABLE: ROOT,
            "HOME": HOME,
            "HF_HOME": f"{ROOT}/cache/huggingface",
            "TORCH_EXTENSIONS_DIR": "/tmp/torch_extensions",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        if not self.kube.internet:
            fixed["HF_HUB_OFFLINE"] = "1"
        if head:
            fixed["RAY_JOB_STOP_WAIT_TIME_S"] = str(_STOP_S - 30)
        return {**fixed, **self.kube.env}

    def _labels(self, role: str) -> dict[str, str]:
        labels = {"app.kubernetes.io/part-of": "imprint", ROLE_LABEL: role, "imprint.dev/job": self.kind}
        return {**labels, INTERNET_LABEL: "true"} if self.kube.internet else labels


def _quantity(cpus: float) -> str:
    return str(int(cpus)) if cpus == int(cpus) else f"{round(cpus * 1000)}m"
