"""MLflow as k8s/base/mlflow.yaml starts it, on a real PostgreSQL, with artifacts in an S3-compatible server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import psycopg2
import pytest
import yaml
from stores import Postgres, free_port, postgres, stop, wait_until

from imprint.config.training import TrackingSpec
from imprint.tracking.run import TrackedRun

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Stores:
    """MLflow's address, and what lies behind it."""

    uri: str
    database: Postgres
    s3: Any


def manifest_containers() -> tuple[dict[str, Any], dict[str, Any]]:
    """The init container that makes buckets, and MLflow's own."""
    documents = yaml.safe_load_all((ROOT / "k8s" / "base" / "mlflow.yaml").read_text())
    (deployment,) = [one for one in documents if one["kind"] == "Deployment"]
    spec = deployment["spec"]["template"]["spec"]
    return spec["initContainers"][0], spec["containers"][0]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    from moto.server import ThreadedMotoServer

    folder = tmp_path_factory.mktemp("stores")
    s3_port, port = free_port(), free_port()
    moto = ThreadedMotoServer("127.0.0.1", s3_port, verbose=False)
    moto.start()
    keys = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3_port}", "AWS_ACCESS_KEY_ID": "imprint",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    buckets, server = manifest_containers()
    environment = {**os.environ, **keys, "MLFLOW_DISABLE_TELEMETRY": "true"}
    script = ROOT / "k8s" / "image" / Path(buckets["command"][1]).name
    for _ in range(2):  # pods start more than once
        subprocess.run([sys.executable, script, *buckets["args"]], env=environment, check=True)
    (backend,) = [one["value"] for one in server["env"] if one["name"] == "MLFLOW_BACKEND_STORE_URI"]
    with postgres(folder) as database:
        backend = backend.replace("imprint-postgres:5432", f"127.0.0.1:{database.port}")
        arguments = [one for one in server["args"] if not one.startswith(("--host", "--port", "--workers"))]
        with (folder / "mlflow.log").open("wb") as log:
            process = subprocess.Popen(
                [BIN / server["command"][0], *server["command"][1:], *arguments, "--host=127.0.0.1", f"--port={port}",
                 "--workers=1"],
                env={**environment, "MLFLOW_BACKEND_STORE_URI": backend}, cwd=folder, stdout=log, stderr=log,
            )  # fmt: skip
        client = boto3.client(
            "s3", endpoint_url=keys["AWS_ENDPOINT_URL"], aws_access_key_id="imprint", aws_secret_access_key="secret",
            region_name="us-east-1",
        )  # fmt: skip
        try:
            wait_until(lambda: _is_healthy(port), "MLflow: " + (folder / "mlflow.log").read_text()[-500:], process)
            yield Stores(f"http://127.0.0.1:{port}", database, client)
        finally:
            stop(process)
            moto.stop()


def _is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def rows(database: Postgres, query: str) -> list[tuple[Any, ...]]:
    connection = psycopg2.connect(host="127.0.0.1", port=database.port, user="mlflow", dbname="mlflow")
    try:
        cursor = connection.cursor()
        cursor.execute(query)
        return cursor.fetchall()
    finally:
        connection.close()


def open_run(stores: Stores, folder: Path, name: str) -> TrackedRun:
    folder.mkdir(exist_ok=True)
    return TrackedRun.open(TrackingSpec(uri=stores.uri, experiment="stores", system_metrics=False), folder, name)


def test_a_run_is_in_postgres_and_its_files_are_in_the_bucket(stores: Stores, tmp_path: Path) -> None:
    run = open_run(stores, tmp_path / "run", "one")
    run.describe({"training": {"steps": 3}}, "job: pretrain_encoder\n")
    for step in range(3):
        run.log_metrics(step, {"loss": 1.0 / (step + 1)})
    (tmp_path / "grid.png").write_bytes(b"a picture")
    run.log_file(tmp_path / "grid.png", "samples")
    run.finish("FINISHED")

    found = rows(stores.database, f"SELECT step, value FROM metrics WHERE run_uuid = '{run.run_id}' AND key = 'loss'")
    assert sorted(found) == [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]
    assert rows(stores.database, f"SELECT status FROM runs WHERE run_uuid = '{run.run_id}'") == [("FINISHED",)]
    listed = stores.s3.list_objects_v2(Bucket="imprint-mlflow")["Contents"]
    ours = {
        one["Key"].partition(f"{run.run_id}/artifacts/")[2]: one["Key"] for one in listed if run.run_id in one["Key"]
    }
    assert set(ours) == {"job.yaml", "samples/grid.png"}
    body = stores.s3.get_object(Bucket="imprint-mlflow", Key=ours["samples/grid.png"])["Body"].read()
    assert body == b"a picture"


def test_a_run_goes_on_where_it_was(stores: Stores, tmp_path: Path) -> None:
    first = open_run(stores, tmp_path / "run", "again")
    first.finish("KILLED")
    assert open_run(stores, tmp_path / "run", "again").run_id == first.run_id


@pytest.mark.parametrize(
    ("host", "status"),
    [("imprint-mlflow:5000", 200), ("imprint-mlflow.imprint.svc:5000", 200), ("evil.example", 403)],
)
def test_mlflow_answers_to_the_names_of_its_service_alone(stores: Stores, host: str, status: int) -> None:
    request = urllib.request.Request(
        f"{stores.uri}/api/2.0/mlflow/experiments/search", json.dumps({"max_results": 1}).encode(),
        {"Content-Type": "application/json", "Host": host},
    )  # fmt: skip
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            got = answer.status
    except urllib.error.HTTPError as error:
        got = error.code
    assert got == status
