"""The manifests of k8s/, as they are applied: schemas, the operator's rules, and what a platform team expects."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube_manifests import (
    CRDS,
    K8S,
    OVERLAYS,
    ROOT,
    WITHOUT_SCHEMA,
    Manifest,
    containers,
    matches,
    may_connect,
    of_kind,
    overlay,
    pod_templates,
    ray_clusters,
    rendered,
    schema_problems,
    title,
)
from kuberay_rules import broken_rules
from serve_config import serve_config_problems

JOB_FOLDERS = ("cpu", "gpu")


def jobs(folder: str) -> list[Manifest]:
    return rendered(K8S / "jobs" / folder)


def everything() -> list[tuple[str, Manifest]]:
    """Every manifest once, with where it is from."""
    found: dict[str, tuple[str, Manifest]] = {}
    places = [*((name, overlay(name)) for name in OVERLAYS), *((name, jobs(name)) for name in JOB_FOLDERS)]
    for place, manifests in places:
        for one in manifests:
            found.setdefault(json.dumps(one, sort_keys=True), (f"{place} {title(one)}", one))
    return list(found.values())


def every_template() -> list[tuple[str, dict[str, Any]]]:
    return [(f"{place}: {name}", template) for place, one in everything() for name, template in pod_templates(one)]


# -- schemas and rules -------------------------------------------------------------------------------------------


def test_manifests_fit_kubernetes_own_schemas() -> None:
    ours = [(place, one) for place, one in everything() if one["apiVersion"] not in {"ray.io/v1", *WITHOUT_SCHEMA}]
    assert len(ours) > 30
    assert {place: problems for place, one in ours if (problems := schema_problems(one))} == {}


@pytest.mark.skipif(not CRDS.is_dir(), reason=f"KubeRay's CRDs are not at {CRDS}")
def test_manifests_fit_kuberays_schemas() -> None:
    ray = [(place, one) for place, one in everything() if one["apiVersion"] == "ray.io/v1"]
    assert {one["kind"] for _, one in ray} == {"RayCluster", "RayJob", "RayService"}
    assert {place: problems for place, one in ray if (problems := schema_problems(one))} == {}


def test_manifests_keep_the_operators_rules() -> None:
    ray = [(place, one) for place, one in everything() if one["apiVersion"] == "ray.io/v1"]
    assert {place: rules for place, one in ray if (rules := broken_rules(one))} == {}


def test_a_misspelt_key_does_not_fit() -> None:
    (deployment,) = of_kind(overlay("dev"), "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["redinessProbe"] = {}
    assert "redinessProbe" in schema_problems(deployment)[0]
    if not CRDS.is_dir():
        return
    (cluster,) = of_kind(overlay("dev"), "RayCluster")
    cluster["spec"]["workerGroupSpecs"][1]["maxReplica"] = 3
    assert "maxReplica" in schema_problems(cluster)[0]
    (service,) = of_kind(overlay("dev"), "RayService")
    service["spec"]["rayClusterConfig"]["authOptions"]["mode"] = "tokens"
    assert "tokens" in schema_problems(service)[0]


RULES = {
    "suspend needs shutdownAfterJobFinishes": {
        "suspend": True, "shutdownAfterJobFinishes": False, "ttlSecondsAfterFinished": 0,
    },
    "shutdownAfterJobFinishes excludes deletionRules": {
        "deletionStrategy": {"deletionRules": [{"policy": "DeleteSelf"}]},
    },
    "backoffLimit excludes clusterSelector and InteractiveMode": {"submissionMode": "InteractiveMode"},
    "ttlSecondsAfterFinished needs shutdownAfterJobFinishes": {"shutdownAfterJobFinishes": False},
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_a_rayjob_that_breaks_a_rule_is_found(rule: str) -> None:
    ray_job = of_kind(jobs("cpu"), "RayJob")[0]
    ray_job["spec"] |= RULES[rule]
    assert broken_rules(ray_job) == [rule]


def test_backoff_with_a_cluster_selector_is_found() -> None:
    ray_job = of_kind(jobs("cpu"), "RayJob")[0]
    ray_job["spec"] |= {"clusterSelector": {"ray.io/cluster": "imprint"}}
    assert broken_rules(ray_job) == ["backoffLimit excludes clusterSelector and InteractiveMode"]


def test_rules_of_clusters_are_found() -> None:
    (cluster,) = of_kind(overlay("prod"), "RayCluster")
    cluster["spec"]["rayVersion"] = "2.51.2"
    cluster["spec"]["workerGroupSpecs"][0]["template"]["spec"]["restartPolicy"] = "Always"
    assert broken_rules(cluster) == [
        "preprocess: autoscaler v2 needs restartPolicy Never or none, got Always",
        "token authentication needs rayVersion 2.52.0 or newer, got 2.51.2",
    ]


def test_what_has_no_schema_here_is_as_its_operator_wants_it() -> None:
    manifests = overlay("prod")
    (queue,) = of_kind(manifests, "ClusterQueue")
    flavors = {one["metadata"]["name"] for one in of_kind(manifests, "ResourceFlavor")}
    for group in queue["spec"]["resourceGroups"]:
        for flavor in group["flavors"]:
            assert flavor["name"] in flavors
            assert [one["name"] for one in flavor["resources"]] == group["coveredResources"]
    (local,) = of_kind(manifests, "LocalQueue")
    assert local["spec"]["clusterQueue"] == queue["metadata"]["name"]
    assert "namespace" not in queue["metadata"]
    for monitor in of_kind(manifests, "ServiceMonitor"):
        assert set(monitor["spec"]) <= {"selector", "endpoints", "targetLabels"}
        assert all(set(one) == {"port", "interval"} | ({"path"} & set(one)) for one in monitor["spec"]["endpoints"])


# -- Ray ---------------------------------------------------------------------------------------------------------


def test_every_ray_cluster_asks_for_tokens_and_is_of_the_version_that_is_installed() -> None:
    clusters = [(place, cluster) for place, one in everything() for cluster in ray_clusters(one)]
    assert len(clusters) > 10
    for place, cluster in clusters:
        assert cluster["authOptions"] == {"mode": "token", "secretName": "imprint-ray-token"}, place
        assert cluster["rayVersion"] == version("ray"), place
        assert cluster["headGroupSpec"].get("serviceType", "ClusterIP") == "ClusterIP", place


def test_no_two_clusters_would_get_services_of_one_name() -> None:
    # KubeRay calls the Service of a head NAME-head-svc, whatever kind NAME is of.
    for name in OVERLAYS:
        every = [*overlay(name), *jobs("cpu" if name == "dev" else "gpu")]
        names = [one["metadata"]["name"] for one in every for _ in ray_clusters(one)]
        assert len(names) > 5
        assert sorted(names) == sorted(set(names))


def test_long_lived_clusters_scale_by_version_two_and_survive_their_heads() -> None:
    for name in OVERLAYS:
        for kind in ("RayCluster", "RayService"):
            ((cluster,),) = (list(ray_clusters(one)) for one in of_kind(overlay(name), kind))
            assert cluster["enableInTreeAutoscaling"] is True
            assert cluster["autoscalerOptions"]["version"] == "v2"
            assert "secretKeyRef" in cluster["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]
            assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}


def test_groups_have_gpus_in_production_and_nowhere_else() -> None:
    def gpus(name: str, kind: str) -> list[str]:
        ((cluster,),) = (list(ray_clusters(one)) for one in of_kind(overlay(name), kind))
        groups = [(cluster["headGroupSpec"], "head"), *((one, one["groupName"]) for one in cluster["workerGroupSpecs"])]
        return [
            group_name
            for group, group_name in groups
            if "nvidia.com/gpu" in group["template"]["spec"]["containers"][0]["resources"]["limits"]
        ]

    assert gpus("prod", "RayCluster") == ["caption", "train"]
    assert gpus("prod", "RayService") == ["serve"]
    assert gpus("dev", "RayCluster") == gpus("dev", "RayService") == []


def test_images_are_of_the_overlays_variant() -> None:
    for name, variant in (("dev", "cpu"), ("prod", "cuda")):
        images = {c["image"] for one in overlay(name) for _, t in pod_templates(one) for c in containers(t)}
        own = {image for image in images if image.startswith("imprint")}
        assert own == {f"imprint:{version('imprint')}-{variant}"}
        assert all(":" in image and not image.endswith(":latest") for image in images)


def test_upgrades_of_the_endpoints_start_a_second_cluster() -> None:
    (service,) = of_kind(overlay("prod"), "RayService")
    assert service["spec"]["upgradeStrategy"]["type"] == "NewCluster"
    assert "externalStorageNamespace" not in service["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]


# -- jobs --------------------------------------------------------------------------------------------------------


def test_the_rayjobs_are_those_of_the_job_files() -> None:
    command = [sys.executable, "-c", "import json, render_rayjobs; print(json.dumps(render_rayjobs.rayjobs()))"]
    done = subprocess.run(command, cwd=ROOT / "scripts", check=True, capture_output=True, text=True)
    expected = json.loads(done.stdout)
    on_disk = {str(file.relative_to(K8S / "jobs")): file.read_text() for file in (K8S / "jobs").glob("*/*.yaml")}
    assert on_disk == expected, "write them anew: python scripts/render_rayjobs.py"


def test_every_job_file_that_runs_on_ray_has_a_rayjob() -> None:
    here = {one["metadata"]["labels"]["imprint.dev/job"] for one in of_kind(jobs("cpu"), "RayJob")}
    kinds = {}
    for file in (ROOT / "jobs").glob("*.yaml"):
        data = yaml.safe_load(file.read_text())
        kinds[file.stem] = data["job"]
    kinds_on_ray = {"benchmark", "evaluate", "finetune_joint", "prepare_shards", "pretrain_encoder", "search"}
    on_ray = set(kinds.values()) & kinds_on_ray
    assert on_ray <= here
    names = {one["metadata"]["name"] for one in of_kind(jobs("cpu"), "ConfigMap")}
    assert {stem.replace("_", "-") for stem, kind in kinds.items() if kind in on_ray} <= names


def test_rayjobs_wait_in_a_queue_that_is_there_for_all_their_pods() -> None:
    queues = {one["metadata"]["name"] for one in of_kind(overlay("dev"), "LocalQueue")}
    for name in JOB_FOLDERS:
        for one in of_kind(jobs(name), "RayJob"):
            assert one["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] in queues
            assert one["spec"]["shutdownAfterJobFinishes"] is True
            (cluster,) = ray_clusters(one)
            assert "enableInTreeAutoscaling" not in cluster
            for group in cluster.get("workerGroupSpecs", []):
                assert group["minReplicas"] == group["replicas"] == group["maxReplicas"] >= 1


# -- pods --------------------------------------------------------------------------------------------------------


LOCKED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def test_pods_have_no_root_and_no_rights() -> None:
    templates = every_template()
    assert len(templates) > 20
    for place, template in templates:
        security = template["spec"]["securityContext"]
        assert security["runAsNonRoot"] is True, place
        assert security["runAsUser"] > 0, place
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, place
        for container in containers(template):
            assert container["securityContext"] == LOCKED, (place, container["name"])
        assert not any("hostPath" in volume for volume in template["spec"].get("volumes", [])), place


def test_pods_have_requests_limits_and_a_priority() -> None:
    priorities = {one["metadata"]["name"] for one in of_kind(overlay("dev"), "PriorityClass")}
    for place, template in every_template():
        assert template["spec"]["priorityClassName"] in priorities, place
        for container in containers(template):
            for part in ("requests", "limits"):
                assert {"cpu", "memory"} <= set(container["resources"][part]), (place, container["name"])
        for volume in template["spec"].get("volumes", []):
            assert "sizeLimit" in volume.get("emptyDir", {"sizeLimit": None}), (place, volume["name"])


def test_ray_containers_can_write_where_ray_writes() -> None:
    for place, template in every_template():
        container = template["spec"]["containers"][0]
        if not container["name"].startswith("ray-"):
            continue
        mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
        volumes = {one["name"]: one for one in template["spec"]["volumes"]}
        assert {"/tmp", "/home/imprint"} <= set(mounts), place
        assert all(name in volumes for name in mounts.values()), place
        assert {"name": "HOME", "value": "/home/imprint"} in container["env"], place


def test_only_heads_that_scale_have_a_token_of_kubernetes() -> None:
    with_token = {place for place, t in every_template() if t["spec"].get("automountServiceAccountToken", True)}
    scaling = {
        f"{place.split()[0]} {title(one)}: {title(one)} head"
        for place, one in everything()
        if any(cluster.get("enableInTreeAutoscaling") for cluster in ray_clusters(one))
    }
    assert with_token == scaling


def test_what_pods_name_is_there() -> None:
    for name in OVERLAYS:
        manifests = overlay(name)
        names = {kind: {one["metadata"]["name"] for one in of_kind(manifests, kind)}
                 for kind in ("ConfigMap", "PersistentVolumeClaim", "ServiceAccount")}  # fmt: skip
        every = [*manifests, *jobs("cpu"), *jobs("gpu")]
        names["ConfigMap"] |= {one["metadata"]["name"] for one in every if one["kind"] == "ConfigMap"}
        for one in every:
            for place, template in pod_templates(one):
                claimed = {c["metadata"]["name"] for c in one.get("spec", {}).get("volumeClaimTemplates", [])}
                mounted = {m["name"] for c in containers(template) for m in c.get("volumeMounts", [])}
                assert mounted <= claimed | {v["name"] for v in template["spec"].get("volumes", [])}, place
                for volume in template["spec"].get("volumes", []):
                    if "configMap" in volume:
                        assert volume["configMap"]["name"] in names["ConfigMap"], place
                    if "persistentVolumeClaim" in volume:
                        assert volume["persistentVolumeClaim"]["claimName"] in names["PersistentVolumeClaim"], place
                account = template["spec"].get("serviceAccountName", "default")
                assert account in names["ServiceAccount"], place


# -- secrets -----------------------------------------------------------------------------------------------------


def _asked(value: Any, found: set[tuple[str, str | None]]) -> None:
    """Every (Secret, key) that something refers to; the key is None where all keys are taken."""
    if isinstance(value, list):
        for one in value:
            _asked(one, found)
    if not isinstance(value, dict):
        return
    if "secretKeyRef" in value:
        found.add((value["secretKeyRef"]["name"], value["secretKeyRef"]["key"]))
    if "secretRef" in value:
        found.add((value["secretRef"]["name"], None))
    if "secretName" in value:
        found.add((value["secretName"], None))
    for one in value.values():
        _asked(one, found)


def test_secrets_are_named_and_never_written() -> None:
    for place, one in everything():
        assert one["kind"] != "Secret", place
        for where, template in pod_templates(one):
            for container in containers(template):
                for entry in container.get("env", []):
                    if re.search(r"PASSWORD|SECRET|TOKEN|_KEY", entry["name"]):
                        assert "valueFrom" in entry, (where, entry["name"])


@pytest.mark.skipif(not (shutil.which("kubectl") and shutil.which("openssl")), reason="needs kubectl and openssl")
def test_every_secret_that_is_named_is_made() -> None:
    done = subprocess.run(
        [K8S / "create-secrets.sh"], env={"PATH": os.environ["PATH"], "DRY_RUN": "1", "HOME": "/nonexistent"},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    made = {one["metadata"]["name"]: set(one["data"]) for one in yaml.safe_load_all(done.stdout)}
    asked: set[tuple[str, str | None]] = set()
    _asked([one for _, one in everything()], asked)
    assert {name for name, _ in asked} == set(made)
    assert all(key is None or key in made[name] for name, key in asked)
    assert made["imprint-ray-token"] == {"auth_token"}
    (key,) = re.findall(r"API key of local: (imp_[\w-]{43})$", done.stderr.strip())
    assert key not in done.stdout


# -- disruptions and the network ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OVERLAYS)
def test_budgets_guard_pods_that_are_there(name: str) -> None:
    manifests = overlay(name)
    labels = [t["metadata"]["labels"] for one in manifests for _, t in pod_templates(one)]
    for budget in of_kind(manifests, "PodDisruptionBudget"):
        chosen = [one for one in labels if matches(budget["spec"]["selector"], one)]
        assert chosen, title(budget)
        if any("ray.io/node-type" in one for one in chosen):
            # Ray's pods have no controller with a scale: of budgets for such, only this form is counted.
            assert type(budget["spec"]["minAvailable"]) is int, title(budget)
    ((cluster,),) = (list(ray_clusters(one)) for one in of_kind(manifests, "RayService"))
    (budget,) = [one for one in of_kind(manifests, "PodDisruptionBudget") if title(one).endswith("serve-workers")]
    least = cluster["workerGroupSpecs"][0]["minReplicas"]
    assert budget["spec"]["minAvailable"] <= least


ROLES: dict[str, dict[str, str]] = {
    "cluster head": {"imprint.dev/role": "cluster", "ray.io/node-type": "head"},
    "cluster worker": {"imprint.dev/role": "cluster", "ray.io/node-type": "worker"},
    "serve head": {"imprint.dev/role": "serve", "ray.io/node-type": "head"},
    "serve worker": {"imprint.dev/role": "serve", "ray.io/node-type": "worker"},
    "serve cleanup": {"imprint.dev/role": "serve", "ray.io/node-type": "redis-cleanup"},
    "job head": {"imprint.dev/role": "job", "ray.io/node-type": "head"},
    "job worker": {"imprint.dev/role": "job", "ray.io/node-type": "worker"},
    "submitter": {"imprint.dev/role": "submitter"},
    "anything": {"app": "else"},
} | {
    name: {"app.kubernetes.io/part-of": "imprint", "app.kubernetes.io/name": name}
    for name in ("redis", "postgres", "object-store", "mlflow")
}  # fmt: skip
TRAINERS = ("cluster head", "cluster worker", "job head", "job worker")
SERVERS = ("serve head", "serve worker", "serve cleanup")
ALLOWED = {
    ("submitter", "job head", 8265), ("submitter", "job worker", 8265), ("mlflow", "postgres", 5432),
    *((one, "redis", 6379) for one in ("cluster head", "serve head", "serve cleanup")),
    *((one, "mlflow", 5000) for one in TRAINERS),
    *((one, "object-store", 8333) for one in (*TRAINERS, *SERVERS, "mlflow")),
}  # fmt: skip
"""Between roles. Ray chooses its ports, so that within a role all are open."""


def _role(name: str) -> str:
    return name.split()[0]


@pytest.mark.parametrize("name", OVERLAYS)
def test_pods_reach_each_other_as_named_and_no_further(name: str) -> None:
    policies = of_kind(overlay(name), "NetworkPolicy")
    ports = (6379, 8265, 10002, 5000, 5432, 8333)
    for one, source in ROLES.items():
        for other, target in ROLES.items():
            for port in ports:
                same = _role(one) == _role(other) and _role(one) in ("cluster", "serve", "job")
                expected = same or (one, other, port) in ALLOWED
                assert may_connect(policies, source, target, port) is expected, (one, other, port)


@pytest.mark.parametrize("name", OVERLAYS)
def test_from_outside_only_the_endpoints_the_operator_and_prometheus_come_in(name: str) -> None:
    policies = of_kind(overlay(name), "NetworkPolicy")
    ports = (6379, 8265, 10001, 10002, 8000, 8080, 5000, 5432, 8333)

    def reached(namespace: str) -> set[tuple[str, int]]:
        return {
            (other, port)
            for other, target in ROLES.items()
            for port in ports
            if may_connect(policies, {"app": "x"}, target, port, namespace)
        }

    ray = [role for role in ROLES if role.split()[0] in ("cluster", "serve", "job")]
    assert reached("default") == set()
    assert reached("gateway") == {("serve worker", 8000)}
    assert reached("kuberay-system") == {(role, port) for role in ray for port in (8265, 8000)}
    assert reached("monitoring") == {(role, port) for role in ray for port in (8080, 8000)}


def test_nothing_is_exposed_outside_of_the_cluster() -> None:
    for place, one in everything():
        assert one["kind"] not in ("Ingress", "HTTPRoute", "Gateway"), place
        if one["kind"] == "Service":
            assert one["spec"].get("type", "ClusterIP") == "ClusterIP", place
        if one["kind"] == "RayService":
            assert one["spec"]["serveService"]["spec"]["type"] == "ClusterIP", place


def test_the_policies_know_the_labels_of_the_pods() -> None:
    roles = {
        (template["metadata"]["labels"].get("imprint.dev/role"), template["metadata"]["labels"].get("ray.io/node-type"))
        for place, template in every_template()
        if "imprint.dev/role" in template["metadata"]["labels"]
    }
    known = {(one.get("imprint.dev/role"), one.get("ray.io/node-type")) for one in ROLES.values()}
    assert roles <= known


# -- the endpoints' config ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_serve_config_has_no_key_that_ray_would_ignore(name: str) -> None:
    (service,) = of_kind(overlay(name), "RayService")
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    assert serve_config_problems(config) == []
    (application,) = config["applications"]
    assert (application["import_path"], application["route_prefix"]) == ("imprint.serve.deployments:build", "/")
    assert config["http_options"]["host"] == "0.0.0.0"


def test_misspelt_keys_of_the_serve_config_are_found() -> None:
    config = yaml.safe_load((K8S / "base" / "serve.yaml").read_text())
    config["http_option"] = {}
    config["applications"][0]["route_prefx"] = "/"
    config["applications"][0]["deployments"] = [{"name": "Tuner", "num_replica": 2}]
    assert serve_config_problems(config) == [
        "applications.0.deployments.0.num_replica: unknown key",
        "applications.0.route_prefx: unknown key",
        "http_option: unknown key",
    ]


@pytest.mark.skipif(find_spec("imprint.serve") is None, reason="imprint.serve is not in this checkout")
@pytest.mark.parametrize("name", OVERLAYS)
def test_the_arguments_are_those_of_the_service(name: str) -> None:
    from imprint.serve.settings import ServeSpec

    (service,) = of_kind(overlay(name), "RayService")
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    spec = ServeSpec.model_validate(application["args"])
    ((cluster,),) = (list(ray_clusters(one)) for one in of_kind(overlay(name), "RayService"))
    (group,) = cluster["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    cpus, gpus = (float(limits.get(what, 0)) * group["minReplicas"] for what in ("cpu", "nvidia.com/gpu"))
    pools = (spec.tuner, spec.sampler, spec.ingress)
    assert sum(pool.min_replicas * pool.cpus for pool in pools) <= cpus
    assert sum(pool.min_replicas * pool.gpus for pool in pools) <= gpus
    module, _, function = application["import_path"].partition(":")
    found = find_spec(module)
    assert found is not None
    assert found.origin is not None
    assert function in [getattr(node, "name", None) for node in ast.parse(Path(found.origin).read_text()).body]
    files = {"store-key", "keys.yaml"}
    assert {Path(spec.store.key_file or "").name, Path(spec.keys_file or "").name} == files


# -- metrics -----------------------------------------------------------------------------------------------------

_NAME = re.compile(r"\b((?:imprint|ray)_[a-z0-9_]+)\b(?=[{\[)\s,/]|$)")
_LABELS = {"ray_io_cluster"}


def _ray_metrics() -> set[str]:
    """Names that Ray's own dashboards read."""
    found = find_spec("ray")
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent / "dashboard" / "modules" / "metrics" / "dashboards"
    return {name for file in folder.glob("*.py") for name in re.findall(r"\bray_[a-z0-9_]+", file.read_text())}


def _asked_metrics() -> set[str]:
    dashboard = json.loads((K8S / "base" / "dashboard.json").read_text())
    texts = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    (rules,) = of_kind(overlay("dev"), "PrometheusRule")
    texts += [rule["expr"] for group in rules["spec"]["groups"] for rule in group["rules"]]
    return {name for text in texts for name in _NAME.findall(text)} - _LABELS


def test_rays_metrics_on_the_dashboard_are_there() -> None:
    asked = {name for name in _asked_metrics() if name.startswith("ray_")}
    assert len(asked) >= 10
    assert asked - _ray_metrics() == set()


@pytest.mark.skipif(find_spec("imprint.serve") is None, reason="imprint.serve is not in this checkout")
def test_our_metrics_on_the_dashboard_are_there() -> None:
    from imprint.serve.gauges import Gauges

    gauges = Gauges()
    gauges.count("images", "succeeded")
    gauges.took("draw", 1.0)
    text = gauges.text({"queued": 1}, drawing=0, tuners=1, samplers=1)
    told = {re.split(r"[{ ]", line)[0] for line in text.splitlines() if not line.startswith("#")}
    asked = {name for name in _asked_metrics() if name.startswith("imprint_")}
    assert len(asked) >= 4
    assert asked - told == set()


def test_the_dashboard_has_panels_with_different_ids_that_do_not_overlap() -> None:
    panels = json.loads((K8S / "base" / "dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        columns, rows = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        own = {(x, y) for x in columns for y in rows}
        assert not cells & own, panel["title"]
        cells |= own
