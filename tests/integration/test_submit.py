"""Job files reach a real cluster in each of the ways that the README names, and end as they end there."""

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
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from imprint.config.jobs.prepare import PrepareFaces
from imprint.pipelines.datasets.faces import prepare_faces

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
START_S = 420

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Cluster:
    """A local Ray cluster, started in the repository root, and the environment of those who talk to it."""

    address: str
    env: dict[str, str]

    def call(self, *command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=cwd, env=self.env, capture_output=True, text=True, check=False)


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        held = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in held]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    gcs, dashboard, agent, client = free_ports(4)
    temporary = Path(tempfile.mkdtemp(prefix="imprint-ray-", dir="/tmp"))  # short: Ray's sockets lie in it
    address = f"http://127.0.0.1:{dashboard}"
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "IMPRINT_"))}
    # An activated environment has `imprint` on its PATH, and so have the jobs of a head that is started in it.
    env |= {"PATH": f"{BIN}{os.pathsep}{env['PATH']}", "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"  # nothing is served that would have to be drained
    env["RAY_DASHBOARD_STARTUP_TIMEOUT_S"] = str(START_S)  # the default, a minute, is short on a busy machine
    # The head ends with this process, however this one ends.
    leash = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
    command = [
        *leash, "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
        f"--ray-client-server-port={client}", f"--temp-dir={temporary}", "--num-cpus=2",
        "--object-store-memory=200000000", "--disable-usage-stats",
    ]  # fmt: skip
    with (temporary / "head.log").open("w") as log:
        head = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until_up(head, address, temporary / "head.log")
        yield Cluster(address, env | {"RAY_API_SERVER_ADDRESS": address})
    finally:
        stop(head)
        shutil.rmtree(temporary, ignore_errors=True)


def wait_until_up(head: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Wait until a job can be submitted: the dashboard answers some seconds before the agent that runs jobs does."""
    body = json.dumps({"entrypoint": "true"}).encode()
    request = urllib.request.Request(f"{address}/api/jobs/", body, {"Content-Type": "application/json"})
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if head.poll() is not None:
            break
        try:
            with urllib.request.urlopen(request, timeout=30):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.5)
    pytest.fail(f"Ray did not start:\n{log.read_text()}")


def stop(head: subprocess.Popen[bytes]) -> None:
    """End the head, which ends what it started; then whatever is left in its session."""
    head.send_signal(signal.SIGTERM)
    try:
        head.wait(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait(timeout=10)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("faces")
    spec = PrepareFaces(
        job="prepare_faces", name="faces", out_dir=str(out), sizes=(16,), train_identities=8, heldout_identities=1,
        heldout_variants=1, workers=1,
    )  # fmt: skip
    return prepare_faces(spec)[16]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["working-dir", "bare"])
def test_ray_job_submit_pretrains_an_encoder(
    way: str, cluster: Cluster, shards: Path, tiny_sd15: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    options = ["--working-dir", ".", "--"] if way == "working-dir" else []
    result = cluster.call(
        "ray", "job", "submit", *options, "jobs/pretrain_encoder.yaml", "name=submitted", f"runs={tmp_path}",
        f"backbone={tiny_sd15}", f"method.encoder.clip={tiny_clip}", f"data.shards=[{shards}]", "data.image_size=16",
        "data.shuffle_buffer=8", "training.steps=2", "training.batch_size=4", "engine={name: torch}",
        "cluster.workers=1", "training.ema=null", "tracking.enabled=false", "grid=null",
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    assert "succeeded" in result.stdout
    encoder = tmp_path / "submitted" / "encoder"
    assert json.loads((encoder / "encoder.json").read_text())["provenance"]["steps"] == 2
    assert (encoder / "encoder.safetensors").stat().st_size > 0
    assert "# override: 'training.steps=2'" in (tmp_path / "submitted" / "job.yaml").read_text()


def test_imprint_submit_follows_the_job_and_keeps_relative_paths(cluster: Cluster, tmp_path: Path) -> None:
    shutil.copy(ROOT / "jobs" / "prepare_faces.yaml", tmp_path / "faces.yaml")
    small = ["out_dir=made/here", "sizes=[16]", "train_identities=1", "heldout_identities=1", "workers=1"]
    result = cluster.call("imprint", "submit", "faces.yaml", *small, "--address", cluster.address, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "pictures of 16 px are in" in result.stdout
    assert (tmp_path / "made" / "here" / "faces-16" / "manifest.json").is_file()


def test_imprint_submit_ends_with_the_exit_code_of_the_job(cluster: Cluster, tmp_path: Path) -> None:
    shutil.copy(ROOT / "jobs" / "prepare_faces.yaml", tmp_path / "faces.yaml")
    (tmp_path / "blocked").write_text("a file where a folder is wanted")
    wrong = ["out_dir=blocked", "sizes=[16]", "train_identities=1", "heldout_identities=1", "workers=1"]
    result = cluster.call("imprint", "submit", "faces.yaml", *wrong, "--address", cluster.address, cwd=tmp_path)
    assert result.returncode == 1
    assert "error: " in result.stdout
    assert "Traceback" not in result.stdout + result.stderr


def test_a_bad_job_file_fails_on_the_cluster_with_the_same_message(cluster: Cluster) -> None:
    result = cluster.call("ray", "job", "submit", "jobs/pretrain_encoder.yaml", "training.stepz=20")
    assert result.returncode != 0
    assert "training.stepz: unknown key; did you mean 'steps'?" in result.stdout
    with urllib.request.urlopen(f"{cluster.address}/api/jobs/", timeout=30) as answer:
        codes = {job["entrypoint"]: job["driver_exit_code"] for job in json.load(answer)}
    assert codes["jobs/pretrain_encoder.yaml training.stepz=20"] == 2
