"""Each rule that KubeRay's operator adds to its schemas, broken in a manifest of ours, is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from kube_manifests import K8S, Manifest, of_kind, overlay, rendered
from kuberay_rules import broken_rules


def _rayjob() -> Manifest:
    every = of_kind(rendered(K8S / "jobs" / "cpu"), "RayJob")
    return next(one for one in every if one["metadata"]["name"] == "pretrain-encoder")


def _cluster() -> Manifest:
    (cluster,) = of_kind(overlay("prod"), "RayCluster")
    return cluster


def _service() -> Manifest:
    (service,) = of_kind(overlay("prod"), "RayService")
    return service


def _head(spec: dict[str, Any]) -> dict[str, Any]:
    return spec["headGroupSpec"]


def _group(spec: dict[str, Any]) -> dict[str, Any]:
    return spec["workerGroupSpecs"][0]


BROKEN: list[tuple[Callable[[], Manifest], Callable[[dict[str, Any]], Any], str]] = [
    # RayJobs
    (_rayjob, lambda s: s.update(suspend=True, shutdownAfterJobFinishes=False, ttlSecondsAfterFinished=0),
     "suspend needs shutdownAfterJobFinishes"),
    (_rayjob, lambda s: s.update(suspend=True, clusterSelector={"a": "b"}, backoffLimit=0),
     "suspend excludes clusterSelector"),
    (_rayjob, lambda s: s.update(suspend=True, deletionStrategy={"deletionRules": [{"policy": "DeleteSelf"}]}),
     "shutdownAfterJobFinishes excludes deletionRules"),
    (_rayjob, lambda s: s.update(
        shutdownAfterJobFinishes=False, ttlSecondsAfterFinished=0,
        deletionStrategy={"deletionRules": [{"policy": "DeleteSelf"}], "onSuccess": {"policy": "DeleteSelf"}}),
     "deletionRules exclude onSuccess and onFailure"),
    (_rayjob, lambda s: s.update(submissionMode="InteractiveMode"),
     "backoffLimit excludes clusterSelector and InteractiveMode"),
    (_rayjob, lambda s: s.update(clusterSelector={"ray.io/cluster": "imprint"}),
     "backoffLimit excludes clusterSelector and InteractiveMode"),
    (_rayjob, lambda s: s.update(shutdownAfterJobFinishes=False),
     "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"),
    (_rayjob, lambda s: s.pop("rayClusterSpec"), "one of rayClusterSpec and clusterSelector is needed"),
    (_rayjob, lambda s: s.update(submissionMode="SidecarMode"),
     "SidecarMode excludes submitterPodTemplate, submitterConfig and clusterSelector"),
    (_rayjob, lambda s: s.update(activeDeadlineSeconds=0), "activeDeadlineSeconds must be positive"),
    (_rayjob, lambda s: s.update(backoffLimit=-1), "backoffLimit must not be negative"),
    (_rayjob, lambda s: s["rayClusterSpec"].pop("rayVersion"), "token authentication needs rayVersion"),
    (_rayjob, lambda s: _group(s["rayClusterSpec"]).pop("maxReplicas"),
     "workers: minReplicas and maxReplicas are needed without an autoscaler"),
    # RayClusters
    (_cluster, lambda s: s.update(rayVersion="2.51.2"),
     "token authentication needs rayVersion 2.52.0 or newer, got 2.51.2"),
    (_cluster, lambda s: s.pop("rayVersion"), "token authentication needs rayVersion"),
    (_cluster, lambda s: _group(s)["template"]["spec"].update(restartPolicy="Always"),
     "preprocess: autoscaler v2 needs restartPolicy Never or none, got Always"),
    (_cluster, lambda s: _head(s)["template"]["spec"].update(restartPolicy="OnFailure"),
     "head: autoscaler v2 needs restartPolicy Never or none, got OnFailure"),
    (_cluster, lambda s: (s["autoscalerOptions"].update(version="v1"), _group(s).update(idleTimeoutSeconds=60)),
     "preprocess: idleTimeoutSeconds needs autoscaler v2"),
    (_cluster, lambda s: _group(s).update(minReplicas=9, maxReplicas=8),
     "preprocess: minReplicas 9 above maxReplicas 8"),
    (_cluster, lambda s: _group(s).update(suspend=True), "preprocess: suspended with an autoscaler"),
    (_cluster, lambda s: _group(s)["template"]["spec"].update(containers=[]), "preprocess: no container"),
    (_cluster, lambda s: _head(s).update(resources={"cpu": "1"}), "head: resources in rayStartParams and beside it"),
    (_cluster, lambda s: _head(s)["rayStartParams"].update(labels="a=b"), "head: labels belong beside rayStartParams"),
    (_cluster, lambda s: _head(s)["rayStartParams"].update({"redis-password": "x"}),
     "redis-password in rayStartParams with gcsFaultToleranceOptions"),
    (_cluster, lambda s: _head(s)["template"]["spec"]["containers"][0]["env"].append({"name": "REDIS_PASSWORD"}),
     "REDIS_PASSWORD in the head's environment with gcsFaultToleranceOptions"),
    # RayServices
    (_service, lambda s: s["upgradeStrategy"].update(type="newcluster"), "upgradeStrategy.type: newcluster"),
    (_service, lambda s: s.update(rayClusterDeletionDelaySeconds=-1),
     "rayClusterDeletionDelaySeconds must not be negative"),
    (_service, lambda s: _head(s["rayClusterConfig"]).update(headService={"metadata": {"name": "x"}}),
     "headService must not have a name"),
    (_service, lambda s: s["rayClusterConfig"].update(upgradeStrategy={"type": "Recreate"}),
     "upgradeStrategy belongs to the RayService"),
    (_service, lambda s: s["rayClusterConfig"].update(rayVersion="2.51.0"),
     "token authentication needs rayVersion 2.52.0 or newer, got 2.51.0"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "spoil", "rule"), BROKEN, ids=lambda one: one if isinstance(one, str) else "")
def test_a_manifest_that_breaks_a_rule_is_found(
    make: Callable[[], Manifest], spoil: Callable[[dict[str, Any]], Any], rule: str
) -> None:
    manifest = make()
    assert broken_rules(manifest) == []
    spoil(manifest["spec"])
    assert broken_rules(manifest) == [rule]


def test_names_that_are_too_long_or_wrong_are_found() -> None:
    for name, told in (("x" * 48, "longer than 47"), ("Imprint", "not small letters")):
        ray_job = _rayjob()
        ray_job["metadata"]["name"] = name
        assert told in broken_rules(ray_job)[0]
