"""The endpoints' configs: no key that Ray would take in silence and ignore, and arguments that the service knows."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube_manifests import K8S, OVERLAYS, ROOT, of_kind, overlay, ray_clusters
from serve_config import serve_config_problems

from imprint.serve.settings import ServeSpec


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


FULL_CONFIG = """
proxy_location: EveryNode
http_options: {host: 0.0.0.0, port: 8000, root_path: /, request_timeout_s: 60, keep_alive_timeout_s: 5}
grpc_options: {port: 9000, grpc_servicer_functions: []}
logging_config: {encoding: JSON, log_level: INFO}
applications:
  - name: imprint
    route_prefix: /
    import_path: imprint.serve.deployments:build
    runtime_env: {env_vars: {A: b}}
    logging_config: {enable_access_log: false}
    deployments:
      - name: Tuner
        max_ongoing_requests: 2
        ray_actor_options: {num_cpus: 1, num_gpus: 0, resources: {x: 1}, runtime_env: {env_vars: {A: b}}}
        autoscaling_config: {min_replicas: 1, max_replicas: 2, target_ongoing_requests: 2, upscale_delay_s: 3}
        request_router_config: {initial_backoff_s: 0.1}
        logging_config: {log_level: INFO}
"""


def _keys(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where each key stands whose name is Ray's."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        if isinstance(value, dict):
            yield (*path, key)
        if key not in ("env_vars", "resources"):
            yield from _keys(one, (*path, key))


@pytest.mark.parametrize("path", list(_keys(yaml.safe_load(FULL_CONFIG))), ids=lambda path: ".".join(map(str, path)))
def test_no_key_of_a_serve_config_can_be_misspelt(path: tuple[Any, ...]) -> None:
    config = yaml.safe_load(FULL_CONFIG)
    assert serve_config_problems(config) == []
    holder = config
    for step in path[:-1]:
        holder = holder[step]
    holder[f"{path[-1]}x"] = holder.pop(path[-1])
    wrong = ".".join(map(str, (*path[:-1], f"{path[-1]}x")))
    assert f"{wrong}: unknown key" in serve_config_problems(config)


def test_the_config_for_any_cluster_of_ray_has_none_either() -> None:
    config = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())
    assert serve_config_problems(config) == []
    ServeSpec.model_validate(config["applications"][0]["args"])


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_arguments_are_those_of_the_service(name: str) -> None:
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
