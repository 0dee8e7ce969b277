"""The service on a real Ray Serve: the API, what is left after DELETE, replicas that die, a redeploy, a queue."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import yaml
from serving import headers, picture, spec_of

from imprint.client.models import State

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
START_S = 900
"""Seven processes import Ray, two or three of them torch; beside other work that takes minutes."""
DONE_S = 300
HEAD = """
import signal, sys, ray
ray.init(
    "local", num_cpus=2, object_store_memory=200_000_000, include_dashboard=True, dashboard_host="127.0.0.1",
    dashboard_port=int(sys.argv[1]), _temp_dir=sys.argv[2], _node_ip_address="127.0.0.1", log_to_driver=False,
)
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
signal.pause()
"""
# Not `ray start --head`, which also starts a server for Ray's old client, and gives up all of Ray where a busy machine
# does not start that one within half a minute.

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1800)]


class Service:
    """A Ray of one machine with `serve deploy`, and the ways to trouble it."""

    def __init__(self, root: Path, backbone: Path) -> None:
        self.root, self.temporary = root, Path(tempfile.mkdtemp(prefix="imprint-ray-", dir="/tmp"))
        self.http, self.dashboard = free_ports(2)
        self.address = f"http://127.0.0.1:{self.http}"
        key = root / "key"
        key.write_bytes(base64.b64encode(os.urandom(32)))
        store = {"url": str(root / "store"), "key_file": str(key), "sweep_s": 1.0}
        spec = spec_of(backbone, store=store, limits={"tunes_per_tenant": 16, "images_waiting": 64})
        pool = {"cpus": 0.2, "threads": 1}
        self.args = json.loads(spec.model_dump_json()) | {
            "tuner": pool, "sampler": {**pool, "min_replicas": 2, "max_replicas": 2}, "ingress": pool,
        }  # fmt: skip
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "IMPRINT_"))}
        self.env |= {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0", "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300", "HOME": str(root),
            "RAY_DASHBOARD_ADDRESS": f"http://127.0.0.1:{self.dashboard}",
        }  # fmt: skip
        command = [sys.executable, "-c", HEAD, str(self.dashboard), str(self.temporary)]
        with (root / "head.log").open("w") as log:
            self.head = subprocess.Popen(
                command, env=self.env, cwd=root, stdout=log, stderr=log, start_new_session=True
            )

    def deploy(self, **changes: Any) -> None:
        config = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())
        config["http_options"]["port"] = self.http
        config["applications"][0]["args"] = {**self.args, **changes}
        file = self.root / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        self.wait_for(f"http://127.0.0.1:{self.dashboard}/api/version")  # the command itself would not wait
        done = subprocess.run([BIN / "serve", "deploy", file], env=self.env, cwd=self.root, capture_output=True)
        assert done.returncode == 0, self.logs() + done.stderr.decode()

    def wait_ready(self) -> None:
        self.wait_for(f"{self.address}/ready")

    def wait_for(self, url: str, holds: Callable[[httpx2.Response], bool] = lambda answer: True) -> None:
        """Ask until the answer is a 200 that `holds`."""
        deadline = time.monotonic() + START_S
        while True:
            try:
                answer = httpx2.get(url, timeout=10)
                if answer.status_code == 200 and holds(answer):
                    return
            except httpx2.TransportError:
                pass
            assert time.monotonic() < deadline and self.head.poll() is None, self.logs()
            time.sleep(0.5)

    def redeploy(self, **changes: Any) -> None:
        """New settings, and so new replicas everywhere; ends when Serve says that all of them have taken over."""
        before = self.replicas()
        self.deploy(**changes)
        url = f"http://127.0.0.1:{self.dashboard}/api/serve/applications/"

        def is_running(answer: httpx2.Response) -> bool:
            application = answer.json()["applications"]["imprint"]
            healthy = all(one["status"] == "HEALTHY" for one in application["deployments"].values())
            return application["status"] == "RUNNING" and healthy and not before & self.replicas()

        self.wait_for(url, is_running)

    def replicas(self) -> set[int]:
        """Process ids of all replicas."""
        answer = httpx2.get(f"http://127.0.0.1:{self.dashboard}/api/serve/applications/", timeout=30)
        deployments = answer.json()["applications"]["imprint"]["deployments"].values()
        return {replica["pid"] for one in deployments for replica in one["replicas"]}

    def running(self, deployment: str) -> int:
        """How many replicas of a deployment serve."""
        answer = httpx2.get(f"http://127.0.0.1:{self.dashboard}/api/serve/applications/", timeout=30)
        replicas = answer.json()["applications"]["imprint"]["deployments"][deployment]["replicas"]
        return sum(replica["state"] == "RUNNING" for replica in replicas)

    def kill(self, kind: str) -> int:
        """Kill one process of a kind, hard."""
        for process in psutil.process_iter(["cmdline"]):
            title = " ".join(process.info["cmdline"] or [])
            if kind in title and str(self.temporary) in self._session_of(process):
                process.send_signal(signal.SIGKILL)
                return process.pid
        raise AssertionError(f"no {kind} was found")

    def _session_of(self, process: psutil.Process) -> str:
        """Ray's workers retitle themselves; which cluster they are of stands in their parents' command lines."""
        return " ".join(" ".join(parent.cmdline()) for parent in process.parents())

    def logs(self) -> str:
        texts = [(self.root / "head.log").read_text()[-2000:]]
        texts += [file.read_text()[-1500:] for file in self.temporary.rglob("logs/serve/*.log")]
        return "\n".join(texts)

    def stop(self) -> None:
        self.head.send_signal(signal.SIGTERM)
        try:
            self.head.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.head.pid, signal.SIGKILL)
        shutil.rmtree(self.temporary, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, tiny_sd15: Path) -> Iterator[Service]:
    running = Service(tmp_path_factory.mktemp("service"), tiny_sd15)
    try:
        running.deploy()
        running.wait_ready()
        yield running
    finally:
        running.stop()


@pytest.fixture
def http(service: Service) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=service.address, headers=headers(), timeout=120) as client:
        yield client


def make(client: httpx2.Client, **fields: Any) -> dict[str, Any]:
    answer = client.post(
        "/v1/concepts",
        files={"images": picture()},
        data={"class_noun": "cat", **fields},
        headers={"Prefer": "wait=100"},
    )
    assert answer.status_code == 201, answer.text
    return answer.json()


def test_nothing_is_left_of_a_deleted_concept(service: Service, http: httpx2.Client) -> None:
    marker, noun = "zanzibar", "quokka"
    made = make(http, class_noun=noun, prompts=f"<concept> {marker}")
    assert made["images"][0]["b64_json"]
    order = {"prompt": f"<concept> {marker}", "concepts": [made["id"]], "num_images": 2, "seed": 1}
    first = http.post("/v1/images", json=order, headers={"Idempotency-Key": "one"})
    assert first.status_code == 200, first.text
    assert http.post("/v1/images", json=order, headers={"Idempotency-Key": "one"}).content == first.content
    told = http.post("/v1/images", json={**order, "stream": True}).text
    assert told.count("event: image") == 2 and told.rstrip().endswith("data: {}")
    assert "event: succeeded" in http.get(made["links"]["events"]).text
    assert http.get(made["links"]["weights"], params={"format": "imprint"}).content[:2] == b"PK"
    assert http.post("/v1/images", json={**order, "prompt": marker * 40}).status_code == 422
    other = httpx2.Client(base_url=service.address, headers=headers("blue"), timeout=60)
    for answer in (
        other.get(made["links"]["self"]),
        other.delete(made["links"]["self"]),
        other.post("/v1/images", json=order),
    ):
        assert answer.status_code == 404
    other.close()
    stored = [file for file in (service.root / "store").rglob("*") if file.is_file()]
    assert stored and not any(noun.encode() in file.read_bytes() for file in stored)
    assert http.delete(made["links"]["self"]).status_code == 204
    assert [file for file in (service.root / "store").rglob("*") if file.is_file()] == []
    time.sleep(3)  # logs are written behind
    words = [marker.encode(), noun.encode()]
    scanned = 0
    for folder in (service.temporary, service.root):
        for file in folder.rglob("*"):
            if file.is_file() and not file.is_symlink():
                scanned += 1
                content = file.read_bytes()
                assert not any(word in content for word in words), file
    assert scanned > 20


def test_cancel_reaches_the_tuner(http: httpx2.Client) -> None:
    started = http.post("/v1/concepts", files={"images": picture()}, data={"class_noun": "cat", "steps": 1000}).json()
    while http.get(started["links"]["self"]).json()["progress"]["step"] < 2:
        time.sleep(0.05)
    assert http.post(started["links"]["cancel"]).json()["state"] == "canceled"
    began = time.monotonic()
    make(http)  # the one tuner is free again
    assert time.monotonic() - began < 30


async def under_load(service: Service, trouble: Callable[[], None], seconds: float) -> dict[str, Any]:
    """Tunes and draws while there is trouble; what was accepted and what came of it."""
    concepts: list[str] = []
    statuses: list[int] = []
    stop = asyncio.Event()

    async def tunes(client: httpx2.AsyncClient) -> None:
        while not stop.is_set():
            data = {"class_noun": "cat", "steps": "40"}
            answer = await client.post("/v1/concepts", files={"images": picture()}, data=data)
            statuses.append(answer.status_code)
            if answer.status_code == 202:
                concepts.append(answer.json()["id"])
            await asyncio.sleep(0.5)

    async def draws(client: httpx2.AsyncClient, number: int) -> None:
        while not stop.is_set():
            order = {"prompt": "a cat", "seed": number, "steps": 10}
            statuses.append((await client.post("/v1/images", json=order)).status_code)
            if statuses[-1] != 200:
                await asyncio.sleep(0.2)

    async with httpx2.AsyncClient(base_url=service.address, headers=headers(), timeout=DONE_S) as client:
        work = [asyncio.ensure_future(one) for one in (tunes(client), draws(client, 1), draws(client, 2))]
        await asyncio.sleep(seconds / 4)
        await asyncio.to_thread(trouble)
        await asyncio.sleep(seconds)
        stop.set()
        await asyncio.gather(*work)
        states = {}
        for concept_id in concepts:
            deadline = time.monotonic() + DONE_S
            while True:
                answer = await client.get(f"/v1/concepts/{concept_id}")
                assert answer.status_code in (200, 503), answer.text
                if answer.status_code == 200 and State(answer.json()["state"]).is_terminal:
                    break
                assert time.monotonic() < deadline, "an accepted concept is not finished"
                await asyncio.sleep(0.2)
            states[concept_id] = answer.json()["state"]
            await client.delete(f"/v1/concepts/{concept_id}")
    return {"statuses": statuses, "states": states}


@pytest.mark.parametrize("kind", ["ServeReplica:imprint:Tuner", "ServeReplica:imprint:Sampler", "DeskActor"])
def test_no_accepted_request_is_lost_where_a_process_is_killed(service: Service, kind: str) -> None:
    came = asyncio.run(under_load(service, lambda: print(service.kill(kind)), 12))
    assert set(came["statuses"]) <= {200, 202, 429, 503} and came["statuses"].count(200) > 5
    assert came["states"] and set(came["states"].values()) == {"succeeded"}
    service.wait_ready()


def test_no_accepted_request_is_lost_where_it_is_deployed_again(service: Service, http: httpx2.Client) -> None:
    before = service.replicas()
    assert http.post("/v1/images", json={"prompt": "a cat", "steps": 60}).status_code == 200
    limits = {**service.args["limits"], "sampling_steps": 50}
    came = asyncio.run(under_load(service, lambda: service.redeploy(limits=limits), 5))
    assert set(came["statuses"]) <= {200, 202, 429, 503} and came["statuses"].count(200) > 5
    assert came["states"] and set(came["states"].values()) == {"succeeded"}
    assert not before & service.replicas()
    assert http.post("/v1/images", json={"prompt": "a cat", "steps": 60}).status_code == 422


def test_a_queue_brings_another_tuner(service: Service, http: httpx2.Client) -> None:
    """With two tunes for each as the target; Serve waits half a minute before it adds one."""
    service.redeploy(tuner={**service.args["tuner"], "min_replicas": 1, "max_replicas": 2})
    assert service.running("Tuner") == 1
    started = []
    for _ in range(8):
        data = {"class_noun": "cat", "steps": 1000}
        answer = http.post("/v1/concepts", files={"images": picture()}, data=data)
        assert answer.status_code == 202, answer.text
        started.append(answer.json()["links"])
    deadline = time.monotonic() + 240
    while service.running("Tuner") < 2:
        assert time.monotonic() < deadline, service.logs()
        time.sleep(1)
    while sum(http.get(links["self"]).json()["progress"]["step"] > 0 for links in started) < 2:
        assert time.monotonic() < deadline, "the second one has nothing to do"
        time.sleep(0.5)
    for links in started:
        if http.post(links["cancel"]).status_code != 200:
            assert http.get(links["self"]).json()["state"] == "succeeded", "only what has ended is not canceled"
