"""What KubeRay's operator 1.7 refuses beyond its CRD schemas, each rule as a line of text where it is broken.

Source: the operator's `ValidateRayClusterSpec`, `ValidateRayJobSpec` and `ValidateRayServiceSpec` (ray-operator 1.7).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

LONGEST = {"RayCluster": 53, "RayJob": 47, "RayService": 47}
_DNS = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
_TOKENS_SINCE = (2, 52, 0)
_UPGRADES = {None, "NewCluster", "None", "NewClusterWithIncrementalUpgrade"}


def broken_rules(manifest: dict[str, Any]) -> list[str]:
    """Every rule that a RayCluster, RayJob or RayService breaks."""
    kind, spec = manifest["kind"], manifest["spec"]
    rules = {"RayCluster": _cluster, "RayJob": _job, "RayService": _service}[kind]
    return [*_name(manifest), *rules(spec)]


def _name(manifest: dict[str, Any]) -> Iterator[str]:
    name, longest = manifest["metadata"]["name"], LONGEST[manifest["kind"]]
    if len(name) > longest:
        yield f"name {name}: longer than {longest}"
    if not _DNS.match(name):
        yield f"name {name}: not small letters, digits and -, a letter first"


def _cluster(spec: dict[str, Any]) -> Iterator[str]:
    groups = spec.get("workerGroupSpecs", [])
    every = [("head", spec["headGroupSpec"]), *((group["groupName"], group) for group in groups)]
    scales = spec.get("enableInTreeAutoscaling", False)
    version2 = scales and spec.get("autoscalerOptions", {}).get("version") == "v2"
    for name, group in every:
        yield from _group(name, group)
        policy = group["template"]["spec"].get("restartPolicy")
        if version2 and policy not in (None, "Never"):
            yield f"{name}: autoscaler v2 needs restartPolicy Never or none, got {policy}"
        if version2 is False and group.get("idleTimeoutSeconds") is not None:
            yield f"{name}: idleTimeoutSeconds needs autoscaler v2"
    for group in groups:
        yield from _replicas(group, scales)
    yield from _tokens(spec)
    yield from _fault_tolerance(spec)


def _group(name: str, group: dict[str, Any]) -> Iterator[str]:
    if not group["template"]["spec"].get("containers"):
        yield f"{name}: no container"
    asked = {"num-cpus", "num-gpus", "memory", "resources"} & set(group.get("rayStartParams", {}))
    if asked and group.get("resources"):
        yield f"{name}: resources in rayStartParams and beside it"
    if "labels" in group.get("rayStartParams", {}):
        yield f"{name}: labels belong beside rayStartParams"


def _replicas(group: dict[str, Any], scales: bool) -> Iterator[str]:
    name, least, most = group["groupName"], group.get("minReplicas"), group.get("maxReplicas")
    if not scales and (least is None or most is None):
        yield f"{name}: minReplicas and maxReplicas are needed without an autoscaler"
    if least is not None and most is not None and least > most:
        yield f"{name}: minReplicas {least} above maxReplicas {most}"
    if scales and group.get("suspend"):
        yield f"{name}: suspended with an autoscaler"


def _tokens(spec: dict[str, Any]) -> Iterator[str]:
    if spec.get("authOptions", {}).get("mode") != "token":
        return
    version = spec.get("rayVersion")
    if not version:
        yield "token authentication needs rayVersion"
    elif tuple(map(int, version.split("."))) < _TOKENS_SINCE:
        yield f"token authentication needs rayVersion 2.52.0 or newer, got {version}"


def _fault_tolerance(spec: dict[str, Any]) -> Iterator[str]:
    head = spec["headGroupSpec"]
    names = {entry["name"] for entry in head["template"]["spec"]["containers"][0].get("env", [])}
    options = spec.get("gcsFaultToleranceOptions")
    if options is None:
        if "RAY_REDIS_ADDRESS" in names:
            yield "RAY_REDIS_ADDRESS without gcsFaultToleranceOptions"
        return
    if "redis-password" in head.get("rayStartParams", {}):
        yield "redis-password in rayStartParams with gcsFaultToleranceOptions"
    for name in sorted(names & {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS", "REDIS_USERNAME"}):
        yield f"{name} in the head's environment with gcsFaultToleranceOptions"
    if options.get("backend", "redis") == "redis" and options.get("storage"):
        yield "storage is for the backend rocksdb"
    if options.get("backend") == "rocksdb":
        yield "the backend rocksdb needs a feature gate that is off"


def _job(spec: dict[str, Any]) -> Iterator[str]:
    shuts, mode = spec.get("shutdownAfterJobFinishes", False), spec.get("submissionMode", "K8sJobMode")
    retries, selects = spec.get("backoffLimit", 0), bool(spec.get("clusterSelector"))
    strategy = spec.get("deletionStrategy", {})
    if spec.get("suspend") and not shuts:
        yield "suspend needs shutdownAfterJobFinishes"
    if spec.get("suspend") and selects:
        yield "suspend excludes clusterSelector"
    if not shuts and spec.get("ttlSecondsAfterFinished", 0) > 0:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if shuts and strategy.get("deletionRules"):
        yield "shutdownAfterJobFinishes excludes deletionRules"
    if strategy.get("deletionRules") and (strategy.get("onSuccess") or strategy.get("onFailure")):
        yield "deletionRules exclude onSuccess and onFailure"
    if spec.get("rayClusterSpec") is None and not selects:
        yield "one of rayClusterSpec and clusterSelector is needed"
    if retries > 0 and (selects or mode == "InteractiveMode"):
        yield "backoffLimit excludes clusterSelector and InteractiveMode"
    if mode == "SidecarMode" and (spec.get("submitterPodTemplate") or spec.get("submitterConfig") or selects):
        yield "SidecarMode excludes submitterPodTemplate, submitterConfig and clusterSelector"
    for key in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(key) is not None and spec[key] <= 0:
            yield f"{key} must be positive"
    if retries < 0:
        yield "backoffLimit must not be negative"
    if spec.get("rayClusterSpec") is not None:
        yield from _cluster(spec["rayClusterSpec"])


def _service(spec: dict[str, Any]) -> Iterator[str]:
    cluster, kind = spec["rayClusterConfig"], spec.get("upgradeStrategy", {}).get("type")
    if kind not in _UPGRADES:
        yield f"upgradeStrategy.type: {kind}"
    if kind == "NewClusterWithIncrementalUpgrade" and not cluster.get("enableInTreeAutoscaling"):
        yield "NewClusterWithIncrementalUpgrade needs the autoscaler"
    if cluster["headGroupSpec"].get("headService", {}).get("metadata", {}).get("name"):
        yield "headService must not have a name"
    if cluster.get("upgradeStrategy"):
        yield "upgradeStrategy belongs to the RayService"
    if spec.get("rayClusterDeletionDelaySeconds", 0) < 0:
        yield "rayClusterDeletionDelaySeconds must not be negative"
    yield from _cluster(cluster)
