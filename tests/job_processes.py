"""Jobs run by `imprint run` in processes of their own, and a cluster that outlives them, for the integration tests."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

BIN = Path(sys.executable).parent
WAIT_S = 600  # a busy machine takes minutes to import what a worker needs
ONE_WORKER = {"cluster": {"workers": 1, "cpus_per_worker": 0.5}}


class Job:
    """Job files of one `spec`, with changes, in the folder `root`."""

    def __init__(self, root: Path, spec: Mapping[str, Any]) -> None:
        self.root, self.runs, self.spec = root, root / "runs", {**spec, "runs": str(root / "runs")}
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "IMPRINT_"))}
        self.env |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
        self.env |= {"RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300", "RAY_worker_register_timeout_seconds": "300"}
        self.env["RAY_worker_niceness"] = "0"  # of 15, Ray's default, workers starve beside whatever else is busy

    def start(self, name: str, **changes: object) -> subprocess.Popen[bytes]:
        file = self.root / f"{name}.yaml"
        file.write_text(yaml.safe_dump({**self.spec, "name": name, **changes}))
        command = [BIN / "imprint", "run", file]
        with (self.root / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command, env=self.env, cwd=self.root, stdout=log, stderr=log, start_new_session=True
            )

    def finish(self, name: str, process: subprocess.Popen[bytes]) -> None:
        code = process.wait(WAIT_S)
        assert code == 0, (self.root / f"{name}.log").read_text()[-6000:]

    def journal(self, name: str) -> list[dict[str, float]]:
        path = self.runs / name / "log.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for(self, name: str, process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not ready():
            assert process.poll() is None, (self.root / f"{name}.log").read_text()[-6000:]
            assert time.monotonic() < deadline, (self.root / f"{name}.log").read_text()[-6000:]
            time.sleep(0.2)

    def starts(self, name: str) -> list[dict[str, float]]:
        """What each start of the workers wrote."""
        return [record for record in self.journal(name) if "pid" in record]

    def losses(self, name: str) -> dict[int, float]:
        """The last loss that was written for each step."""
        return {int(record["step"]): record["loss"] for record in self.journal(name) if "loss" in record}


@contextmanager
def ray_head(job: Job, *, cpus: int = 2) -> Iterator[Head]:
    """A head that outlives the drivers of the job's runs."""
    temporary = Path(tempfile.mkdtemp(prefix="imprint-ray-", dir="/tmp"))  # short: Ray's sockets lie in it
    metrics = free_port()
    command = [
        BIN / "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--port=0", f"--num-cpus={cpus}",
        "--include-dashboard=false", f"--temp-dir={temporary}", "--object-store-memory=200000000",
        f"--metrics-export-port={metrics}",
    ]  # fmt: skip
    with (temporary / "head.log").open("wb") as log:
        process = subprocess.Popen(command, env=job.env, stdout=log, stderr=log, start_new_session=True)
    address = temporary / "ray_current_cluster"
    try:
        job.wait_for("head", process, address.exists)
        job.env["RAY_ADDRESS"] = address.read_text().strip()
        yield Head(process, f"http://127.0.0.1:{metrics}/metrics")
    finally:
        job.env.pop("RAY_ADDRESS", None)
        stop_ray(process)
        shutil.rmtree(temporary, ignore_errors=True)


@dataclass(frozen=True)
class Head:
    """The process of `ray start --head`, and where Prometheus would read."""

    process: subprocess.Popen[bytes]
    metrics: str


@contextmanager
def ray_node(job: Job, *, cpus: int) -> Iterator[subprocess.Popen[bytes]]:
    """Another node of the cluster, on this machine."""
    command = [
        BIN / "ray", "start", "--block", f"--address={job.env['RAY_ADDRESS']}", "--node-ip-address=127.0.0.1",
        f"--num-cpus={cpus}", "--object-store-memory=200000000",
    ]  # fmt: skip
    with (job.root / "node.log").open("ab") as log:
        process = subprocess.Popen(command, env=job.env, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        stop_ray(process)


def stop_ray(process: subprocess.Popen[bytes]) -> None:
    """End a `ray start --block` and what it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            kill_all(process)


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a process and all that it started, as when a machine is gone."""
    one = psutil.Process(process.pid)
    for each in (one, *one.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
