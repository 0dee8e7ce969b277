"""Every port that a pod of Ray opens to others: without the token, with a wrong one, with the right one."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator

import grpc
import pytest
from kube_manifests import K8S, load, may_connect
from pod_cluster import PodCluster, fetch, pod_cluster

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]

# One call of each service that Ray's processes offer, with a request that changes nothing: an empty one where that will
# do; of the object manager, whose ids have a length, an object that nobody has for a node that is not there.
CALLS = {
    "NodeInfoGcsService/GetAllNodeInfo": b"", "NodeManagerService/GetNodeStats": b"",
    "ObjectManagerService/Pull": b"\x0a\x1c" + bytes(range(28)) + b"\x12\x1c" + bytes(range(28)),
    "CoreWorkerService/GetCoreWorkerStats": b"", "RayletDriver/ClusterInfo": b"", "ReporterService/HealthCheck": b"",
    "LogService/ListLogs": b"",
}  # fmt: skip
PATHS = ("/api/version", "/nodes?view=summary", "/api/jobs/", "/metrics", "/get_or_create_runtime_env", "/")
METRICS = {8080: "metrics", 44217: "of the dashboard", 44227: "of the autoscaler"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodCluster]:
    with pod_cluster(tmp_path_factory.mktemp("tokens"), ("worker",), cpus=1) as running:
        # A task, so that there is a worker process with a port.
        job = running.call("ray", "job", "submit", "--entrypoint-num-cpus=0.5", "--", "python", "-c", "print(6 * 7)")
        assert job.returncode == 0 and "42" in job.stdout, job.stdout + job.stderr
        yield running


def by_grpc(address: str, token: str | None) -> dict[str, str]:
    """What each call says; nothing where no gRPC is spoken or the service is not there."""
    said = {}
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=3)
        except grpc.FutureTimeoutError:
            return {}
        for call, request in CALLS.items():
            method = channel.unary_unary(f"/ray.rpc.{call}", request_serializer=bytes, response_deserializer=bytes)
            try:
                method(request, metadata=metadata, timeout=5)
                said[call] = "OK"
            except grpc.RpcError as error:
                code = error.code().name
                if "luster" in (error.details() or ""):
                    code = "OTHER_CLUSTER"  # a check that comes after that of the token
                if code not in ("UNIMPLEMENTED", "UNAVAILABLE"):
                    said[call] = code
    return said


def by_http(address: str, token: str | None) -> dict[str, int]:
    """The status of each path; nothing where no HTTP is spoken."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    statuses = {path: fetch(urllib.request.Request(f"http://{address}{path}", headers=headers), 5)[0] for path in PATHS}
    return {path: status for path, status in statuses.items() if status}


def test_every_open_port_asks_for_the_token_or_tells_numbers_only(cluster: PodCluster) -> None:
    guarded: dict[str, set[int]] = {"grpc": set(), "http": set()}
    opened: dict[tuple[str, int], str] = {}
    unknown: dict[tuple[str, int], str] = {}
    for name in ("head", "worker"):
        pod = cluster.pods[name]
        for port, program in sorted(pod.listening().items()):
            address = f"{pod.address}:{port}"
            none, wrong, right = (by_grpc(address, token) for token in (None, "0" * 64, cluster.token))
            if right:
                print(name, port, program, "gRPC", none, wrong, right)
                assert set(none.values()) == set(wrong.values()) == {"UNAUTHENTICATED"}, (name, port, program)
                assert none.keys() == right.keys() and "UNAUTHENTICATED" not in right.values(), (name, port, right)
                guarded["grpc"].add(port)
                continue
            none, wrong, right = (by_http(address, token) for token in (None, "0" * 64, cluster.token))
            print(name, port, program, "HTTP", none, wrong, right)
            if not right:
                unknown[name, port] = program
            elif 401 in none.values():
                for path, status in right.items():
                    assert status not in (401, 403), (name, port, path)
                public = {path for path, status in none.items() if status != 401}
                assert public <= {"/", "/api/version"}, (name, port, public)
                assert {wrong[path] for path in wrong if path not in public} == {403}, (name, port, wrong)
                guarded["http"].add(port)
            else:
                opened[name, port] = program
    assert unknown == {}, "they speak no HTTP, and none of these calls of gRPC"
    assert {6379, 10001} <= guarded["grpc"] and {8265, 52365} <= guarded["http"]
    assert len(guarded["grpc"]) >= 5
    assert {port for _, port in opened} <= set(METRICS), opened
    assert ("worker", 8080) in opened


def test_the_policies_let_prometheus_alone_read_what_asks_for_no_token() -> None:
    policies = [one for one in load((K8S / "base" / "network-policies.yaml").read_text())]
    for role in ("cluster", "serve", "job"):
        target = {"imprint.dev/role": role, "ray.io/node-type": "head"}
        for port in METRICS:
            for origin in ("default", "kuberay-system", "gateway"):
                assert not may_connect(policies, {"app": "x"}, target, port, origin)
        assert may_connect(policies, {"app": "x"}, target, 8080, "monitoring")


@pytest.mark.parametrize(("token", "said"), [(None, "401"), ("0" * 64, "403")])
def test_commands_without_the_right_token_get_nowhere(cluster: PodCluster, token: str | None, said: str) -> None:
    env = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": ""} if token is None else {"RAY_AUTH_TOKEN": token}
    for command in (("job", "list"), ("job", "submit", "--", "true")):
        refused = cluster.call("ray", *command, **env)
        assert refused.returncode != 0
        assert said in refused.stdout + refused.stderr or "uthentication" in refused.stdout + refused.stderr
    assert cluster.call("ray", "job", "list").returncode == 0


def test_a_node_with_a_wrong_token_does_not_join(cluster: PodCluster) -> None:
    before = cluster.alive()
    head = f"{cluster.pods['head'].address}:6379"
    pod = cluster.pod("stranger")
    env = {**cluster.env, "RAY_AUTH_TOKEN": "0" * 64}
    command = [
        "ray", "start", "--block", f"--address={head}", f"--node-ip-address={pod.address}", "--num-cpus=1",
        f"--temp-dir={cluster.temporary / 'stranger'}",
    ]  # fmt: skip
    pod.start(command, env, cluster.root)
    try:
        cluster.wait(lambda: "oken" in pod.log.read_text() or not pod.processes(), "the refusal", 120)
        assert cluster.alive() == before
    finally:
        pod.kill()


def test_redis_asks_for_its_password(cluster: PodCluster) -> None:
    import valkey

    def keys_of(password: str | None) -> list[bytes]:
        address = cluster.pods["redis"].address
        with valkey.Valkey(address, 6379, password=password, socket_timeout=10) as client:
            return list(client.keys())

    for password in (None, "wrong"):
        with pytest.raises(valkey.exceptions.AuthenticationError):
            keys_of(password)
    keys = keys_of(cluster.password)
    assert any(b"uid-of-the-cluster" in key for key in keys), "the head's state, under the cluster's own name"
