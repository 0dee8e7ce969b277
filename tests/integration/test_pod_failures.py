"""Machines that die under a training and under the endpoints: the head, whose state is in Redis, and a worker."""

from __future__ import annotations

import base64
import os
import re
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from job_processes import Job
from pod_cluster import PodCluster, fetch, pod_cluster
from serving import headers, picture, spec_of
from small_shards import write_shards

ROOT = Path(__file__).resolve().parents[2]
WORKERS = ("one", "two")
OUTAGE_S = 15.0
STEPS = 500

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodCluster]:
    with pod_cluster(tmp_path_factory.mktemp("pods"), WORKERS, cpus=3) as running:
        yield running


@pytest.fixture(scope="module")
def endpoints(cluster: PodCluster, tiny_sd15: Path) -> None:
    """The config of the manifests, with a small model, small pools, and a folder for the bucket."""
    key = cluster.root / "key"
    key.write_bytes(base64.b64encode(os.urandom(32)))
    spec = spec_of(tiny_sd15, store={"url": str(cluster.root / "store"), "key_file": str(key)})
    pool = {"cpus": 0.1, "threads": 1, "drain_s": 5}
    two = {**pool, "min_replicas": 2, "max_replicas": 2}
    config = yaml.safe_load((ROOT / "k8s" / "base" / "serve.yaml").read_text())
    config["applications"][0]["args"] = spec.model_dump(mode="json") | {"tuner": pool, "sampler": two, "ingress": two}
    (cluster.root / "serve.yaml").write_text(yaml.safe_dump(config))

    def deployed() -> bool:
        return cluster.call("serve", "deploy", "serve.yaml", RAY_DASHBOARD_ADDRESS=cluster.dashboard).returncode == 0

    cluster.wait(deployed, "serve deploy")
    cluster.wait(lambda: {200} == {ready(cluster, name) for name in WORKERS}, "the endpoints on both workers")


def is_whole(cluster: PodCluster) -> bool:
    """Whether Serve counts every deployment as healthy."""
    done = cluster.call("serve", "status", RAY_DASHBOARD_ADDRESS=cluster.dashboard)
    if done.returncode:
        return False
    application = yaml.safe_load(done.stdout)["applications"]["imprint"]
    deployments = application["deployments"].values()
    return application["status"] == "RUNNING" and all(one["status"] == "HEALTHY" for one in deployments)


def ready(cluster: PodCluster, name: str) -> int:
    """What the probe of a worker's pod gets."""
    try:
        return httpx2.get(f"http://{cluster.pods[name].address}:8000/ready", timeout=5).status_code
    except httpx2.TransportError:
        return 0


@dataclass
class Training:
    """A job of two trainers, one on each worker, handed in with CPUs for its driver: it runs on a worker as well."""

    cluster: PodCluster
    job: Job
    name: str

    def submit(self) -> None:
        file = self.job.root / f"{self.name}.yaml"
        file.write_text(yaml.safe_dump({**self.job.spec, "name": self.name}))
        command = ("submit", file, "--address", self.cluster.dashboard, "--driver-cpus", "0.1", "--no-wait")
        done = self.cluster.call("imprint", *command, "--working-dir", self.job.root)
        assert done.returncode == 0, done.stderr

    def step(self) -> int:
        return max(self.job.losses(self.name), default=0)

    def driver(self) -> str:
        """The pod that it runs in."""
        for name, pod in self.cluster.pods.items():
            for pid in pod.processes():
                try:
                    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue  # it has just ended
                if b"run" in words and any(word.endswith(f"{self.name}.yaml".encode()) for word in words):
                    return name
        raise AssertionError("no driver is found")

    def ended(self) -> bool:
        status, jobs = self.cluster.get("/api/jobs/")
        mine = [one for one in jobs if f"{self.name}.yaml" in (one.get("entrypoint") or "")] if status == 200 else []
        assert not any(one["status"] == "FAILED" for one in mine), [one["message"] for one in mine]
        return any(one["status"] == "SUCCEEDED" for one in mine)


@pytest.fixture(scope="module")
def job(cluster: PodCluster, tiny_sd15: Path, tiny_clip: Path) -> Job:
    root = cluster.root / "jobs"
    root.mkdir()
    spec = {
        "job": "pretrain_encoder", "seed": 3, "backbone": str(tiny_sd15),
        "method": {"domain_word": "face", "encoder": {"clip": str(tiny_clip)}, "offsets": {"vector_width": 4}},
        "data": {
            "shards": [str(write_shards(root / "shards", [13, 9, 18]))], "image_size": 16, "shuffle_buffer": 15,
        },
        "training": {"steps": STEPS, "batch_size": 4, "log_every": 1, "optimizer": {"learning_rate": 1e-3}},
        "checkpoint": {"every": 20, "keep": 2}, "tracking": {"enabled": False},
        # Room for one trainer on each worker, so that both are needed.
        "cluster": {"workers": 2, "cpus_per_worker": 1.6},
    }  # fmt: skip
    return Job(root, spec)


@dataclass
class Load:
    """Who asks for pictures, now at one worker and now at the other, as behind a Service."""

    cluster: PodCluster
    answers: list[tuple[float, str, int]] = field(default_factory=list)

    def statuses(self, since: float = 0.0, until: float = float("inf"), pod: str | None = None) -> Counter[int]:
        """Counts of statuses; 0: the connection broke or was refused."""
        chosen = (status for at, where, status in self.answers if since <= at < until and pod in (None, where))
        return Counter(chosen)

    def _ask(self, stop: threading.Event, concept: str) -> None:
        number = 0
        while not stop.is_set():
            name = WORKERS[number % len(WORKERS)]
            order = {"prompt": "<concept> on a beach", "concepts": [concept], "seed": number, "steps": 2}
            began = time.monotonic()
            try:
                url = f"http://{self.cluster.pods[name].address}:8000/v1/images"
                status = httpx2.post(url, json=order, headers=headers(), timeout=20).status_code
            except httpx2.TransportError:
                status = 0
            self.answers.append((began, name, status))
            number += 1
            stop.wait(0.2)


@contextmanager
def load(cluster: PodCluster, concept: str) -> Iterator[Load]:
    running, stop = Load(cluster), threading.Event()
    thread = threading.Thread(target=running._ask, args=(stop, concept))
    thread.start()
    try:
        yield running
    finally:
        stop.set()
        thread.join()


DASHBOARD = set(re.findall(r"ray_imprint_\w+", (ROOT / "k8s" / "base" / "dashboard.json").read_text()))
DASHBOARD -= {"ray_imprint_mfu"}  # where the GPU is known


def told_to_prometheus(cluster: PodCluster, run: str) -> set[str]:
    """Names of a training's numbers on the ports that Prometheus reads."""
    pages = [str(fetch(urllib.request.Request(f"http://{cluster.pods[name].address}:8080/"))[1]) for name in WORKERS]
    return set(re.findall(rf'^(ray_imprint_\w+)\{{.*run="{run}"', "\n".join(pages), re.MULTILINE))


@pytest.fixture(scope="module")
def concept(cluster: PodCluster, endpoints: None) -> str:
    url = f"http://{cluster.pods['one'].address}:8000/v1/concepts"
    answer: Any = httpx2.post(
        url, files={"images": picture()}, data={"class_noun": "cat"}, headers=headers(Prefer="wait=100"), timeout=120
    )
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def test_a_head_that_is_killed_comes_back_and_all_went_on(cluster: PodCluster, job: Job, concept: str) -> None:
    training = Training(cluster, job, "steady")
    training.submit()
    cluster.wait(lambda: training.step() >= 10, "training")
    assert training.driver() in WORKERS
    cluster.wait(lambda: told_to_prometheus(cluster, "steady") >= DASHBOARD, "the training's numbers", 120)
    with load(cluster, concept) as asked:
        time.sleep(5)
        killed, at_step = time.monotonic(), training.step()
        cluster.pods["head"].kill()
        time.sleep(OUTAGE_S)
        during = asked.statuses(killed + 1)
        trained = training.step() - at_step
        began = time.monotonic()
        cluster.start_head()
        cluster.wait_for(*WORKERS)
        back = time.monotonic()
        cluster.wait(training.ended, "the end of the training")
        cluster.wait(lambda: asked.statuses(back + 20)[200] > 3, "pictures after the head is back")
    print(f"{trained} steps and {dict(during)} answers in {OUTAGE_S:.0f} s without a head, {training.step()} in all")
    print(f"a head after {back - began:.0f} s; answers in all {dict(asked.statuses())}")
    assert trained > 0 and during[200] > 0
    assert set(asked.statuses()) <= {200, 503}
    assert during[200] > during[503]
    assert len(job.starts("steady")) == 1, "no trainer started again"
    assert set(job.losses("steady")) == set(range(1, STEPS + 1))
    cluster.wait(lambda: is_whole(cluster), "Serve under its new head", 120)


def test_a_worker_is_killed_while_it_trains_and_serves(cluster: PodCluster, job: Job, concept: str) -> None:
    training = Training(cluster, job, "lost")
    training.submit()
    cluster.wait(lambda: training.step() >= 30, "training")
    (victim,) = set(WORKERS) - {training.driver()}
    (other,) = set(WORKERS) - {victim}
    with load(cluster, concept) as asked:
        time.sleep(5)
        killed = time.monotonic()
        cluster.pods[victim].kill()
        noticed = cluster.wait(lambda: cluster.pods[victim].address not in cluster.alive(), "the loss of the node")
        cluster.start_worker(victim, cpus=3)  # KubeRay makes another pod
        cluster.wait_for(victim)
        back = time.monotonic() - killed
        again = cluster.wait(lambda: len(job.starts("lost")) == 2, "the trainers' second start") + back
        cluster.wait(lambda: is_whole(cluster), "all replicas of the endpoints")
        whole = time.monotonic() - killed
        cluster.wait(training.ended, "the end of the training")
        cluster.wait(lambda: asked.statuses(killed + whole, pod=other)[200] > 3, "pictures with all replicas")
    last = max((at - killed for at, pod, status in asked.answers if pod == other and status != 200), default=0.0)
    print(f"killed {victim}: noticed after {noticed:.0f} s, node back after {back:.0f} s, trainers {again:.0f} s, all "
          f"replicas {whole:.0f} s; at {other} {dict(asked.statuses(killed, pod=other))}, the last that was not a "
          f"picture after {last:.0f} s; at {victim} {dict(asked.statuses(killed, pod=victim))}")  # fmt: skip
    assert set(asked.statuses(pod=other)) <= {200, 503}, "the worker that lives answers every request"
    assert last <= whole
    first, second = (int(record["step"]) for record in job.starts("lost"))
    assert first == 0 and second >= 20 and second % 20 == 0, "they went on from a checkpoint"
    assert job.losses("lost") == job.losses("steady"), "bit for bit as if nothing had happened"
