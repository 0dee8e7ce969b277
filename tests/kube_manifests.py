"""Rendered manifests, what stands in them, and the schemas that they must fit; for the tests of k8s/."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
K8S = ROOT / "k8s"
OVERLAYS = ("dev", "prod")
KUBERNETES = "1.32"
CRDS = Path(os.environ.get("IMPRINT_KUBERAY_CRDS", ROOT.parent / "shared" / "kuberay-crds"))
WITHOUT_SCHEMA = {
    # No registry has the schemas of these; tests look at them by hand.
    "kueue.x-k8s.io/v1beta2", "monitoring.coreos.com/v1", "kustomize.config.k8s.io/v1beta1",
}  # fmt: skip

Manifest = dict[str, Any]


def load(text: str) -> list[Manifest]:
    """The documents of a YAML text; libyaml, as CRDs are long."""
    return [document for document in yaml.load_all(text, Loader=yaml.CSafeLoader) if document]


@cache
def _rendered(folder: Path) -> tuple[Manifest, ...]:
    if found := shutil.which("kustomize"):
        command = [found, "build"]
    elif found := shutil.which("kubectl"):
        command = [found, "kustomize"]
    else:
        pytest.skip("neither kustomize nor kubectl is on PATH; its makers publish it in no registry of packages")
    done = subprocess.run([*command, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(load(done.stdout))


def rendered(folder: Path) -> list[Manifest]:
    """What `kustomize build` makes of a folder."""
    return copy.deepcopy(list(_rendered(folder)))


def overlay(name: str) -> list[Manifest]:
    return rendered(K8S / "overlays" / name)


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [one for one in manifests if one["kind"] == kind]


def title(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def ray_clusters(manifest: Manifest) -> Iterator[dict[str, Any]]:
    """The cluster specs in a manifest."""
    spec = manifest.get("spec", {})
    match manifest["kind"]:
        case "RayCluster":
            yield spec
        case "RayJob":
            yield spec["rayClusterSpec"]
        case "RayService":
            yield spec["rayClusterConfig"]


def pod_templates(manifest: Manifest) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each pod template with a name, and the labels of Ray's operator on those of Ray."""
    spec = manifest.get("spec", {})
    if manifest["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
        yield title(manifest), spec["template"]
    if manifest["kind"] == "RayJob":
        yield f"{title(manifest)} submitter", spec["submitterPodTemplate"]
    for cluster in ray_clusters(manifest):
        yield f"{title(manifest)} head", _with_labels(cluster["headGroupSpec"]["template"], "head", "headgroup")
        for group in cluster.get("workerGroupSpecs", []):
            name = group["groupName"]
            yield f"{title(manifest)} {name}", _with_labels(group["template"], "worker", name)


def _with_labels(template: dict[str, Any], node: str, group: str) -> dict[str, Any]:
    template = copy.deepcopy(template)
    template["metadata"]["labels"] |= {"ray.io/node-type": node, "ray.io/group": group, "ray.io/is-ray-node": "yes"}
    return template


def containers(template: dict[str, Any]) -> list[dict[str, Any]]:
    return [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]


# -- schemas -----------------------------------------------------------------------------------------------------


def schema_problems(manifest: Manifest) -> list[str]:
    """Where a manifest does not fit its schema: KubeRay's CRDs, or Kubernetes' own, both without unknown keys."""
    if manifest["apiVersion"] == "ray.io/v1":
        return _crd_problems(manifest)
    if manifest["apiVersion"] in WITHOUT_SCHEMA:
        return []
    try:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message}"]
    return []


def _crd_problems(manifest: Manifest) -> list[str]:
    if not CRDS.is_dir():
        pytest.skip(f"KubeRay's CRDs are not at {CRDS}; IMPRINT_KUBERAY_CRDS names their folder")
    validator = _crd_validator(manifest["kind"])
    errors = sorted(validator.iter_errors(_without_nulls(manifest)), key=lambda error: list(map(str, error.path)))
    return [f"{'.'.join(map(str, error.path))}: {error.message[:300]}" for error in errors]


@cache
def _crd_validator(kind: str) -> jsonschema.Draft202012Validator:
    (crd,) = load((CRDS / f"ray.io_{kind.lower()}s.yaml").read_text())
    (version,) = [one for one in crd["spec"]["versions"] if one["name"] == "v1"]
    schema = version["schema"]["openAPIV3Schema"]
    _make_strict(schema)
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(schema)


def _make_strict(schema: Any) -> None:
    """OpenAPI as Kubernetes reads it, as JSON schema: no unknown keys, and what has a default is not required."""
    if isinstance(schema, list):
        for one in schema:
            _make_strict(one)
    if not isinstance(schema, dict):
        return
    properties = schema.get("properties")
    if isinstance(properties, dict) and schema.get("type") == "object":
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema["additionalProperties"] = False
        if "required" in schema:
            schema["required"] = [name for name in schema["required"] if "default" not in properties.get(name, {})]
    if schema.get("x-kubernetes-int-or-string"):
        schema.pop("type", None)
        schema.pop("format", None)
        schema["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    for key, value in schema.items():
        if key not in ("default", "enum", "required"):
            _make_strict(list(value.values()) if key == "properties" else value)


def _without_nulls(value: Any) -> Any:
    """Kubernetes drops keys without a value."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


# -- network policies --------------------------------------------------------------------------------------------


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector chooses something with these labels."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for wanted in selector.get("matchExpressions", []):
        has = labels.get(wanted["key"]) in wanted["values"]
        if {"In": has, "NotIn": not has}[wanted["operator"]] is False:
            return False
    return True


@cache
def _namespace_labels(namespace: str) -> dict[str, str]:
    return {"kubernetes.io/metadata.name": namespace}


def may_connect(
    policies: list[Manifest], source: dict[str, str], target: dict[str, str], port: int, origin: str = "imprint"
) -> bool:
    """Whether a pod of labels `source` in the namespace `origin` reaches one of labels `target` in ours."""
    inside = origin == "imprint"
    leaves = not inside or _allows(policies, "Egress", source, target, port, "imprint")
    return leaves and _allows(policies, "Ingress", target, source, port, origin)


def _allows(
    policies: list[Manifest], way: str, own: dict[str, str], other: dict[str, str], port: int, namespace: str
) -> bool:
    chosen = [
        one["spec"]
        for one in policies
        if way in one["spec"]["policyTypes"] and matches(one["spec"]["podSelector"], own)
    ]
    if not chosen:
        return True
    key, side = ("ingress", "from") if way == "Ingress" else ("egress", "to")
    for spec in chosen:
        for rule in spec.get(key, []):
            peers = any(_is_peer(peer, other, namespace) for peer in rule[side])
            if peers and any(one["port"] == port for one in rule.get("ports", [{"port": port}])):
                return True
    return False


def _is_peer(peer: dict[str, Any], labels: dict[str, str], namespace: str) -> bool:
    if "ipBlock" in peer:
        return False  # of addresses, the tests ask apart
    if "namespaceSelector" in peer:
        gateway = {"imprint.dev/gateway": "true"} if namespace == "gateway" else {}
        if not matches(peer["namespaceSelector"], _namespace_labels(namespace) | gateway):
            return False
        return matches(peer.get("podSelector", {}), labels)
    return namespace == "imprint" and matches(peer["podSelector"], labels)
