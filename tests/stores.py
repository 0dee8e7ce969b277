"""PostgreSQL, started for a test and gone with it."""

from __future__ import annotations

import glob
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

START_S = 300
_NOBODY = 65534


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_until(ready: Callable[[], bool], what: str, process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + START_S
    while not ready():
        assert process is None or process.poll() is None, f"{what} ended with {process and process.returncode}"
        assert time.monotonic() < deadline, f"{what} did not come up"
        time.sleep(0.2)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@dataclass
class Postgres:
    """A server in `folder`, on loopback, which believes everybody."""

    folder: Path
    port: int
    program: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [*_as_nobody(), self.program / "postgres", "-D", self.folder, "-p", str(self.port), "-h", "127.0.0.1",
             "-k", "", "-c", "fsync=off"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
        )  # fmt: skip
        wait_until(lambda: self._answers(), "PostgreSQL", self.process)

    def _answers(self) -> bool:
        import psycopg2

        try:
            psycopg2.connect(
                host="127.0.0.1", port=self.port, user="mlflow", dbname="postgres", connect_timeout=2
            ).close()
        except psycopg2.OperationalError:
            return False
        return True


@contextmanager
def postgres(tmp_path: Path) -> Iterator[Postgres]:
    """A server with an empty database `mlflow` of the user `mlflow`."""
    import psycopg2

    found = shutil.which("initdb") or next(iter(sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))), None)
    if found is None:
        pytest.skip("PostgreSQL is not installed (initdb is not on PATH)")
    folder = tmp_path / "postgres"
    folder.mkdir()
    if os.geteuid() == 0:
        os.chown(folder, _NOBODY, _NOBODY)
        for parent in (tmp_path, *tmp_path.parents[:3]):
            parent.chmod(parent.stat().st_mode | 0o711)
    subprocess.run(
        [*_as_nobody(), found, "-D", folder, "-U", "mlflow", "--auth=trust", "-N"],
        check=True, capture_output=True, cwd="/",
    )  # fmt: skip
    server = Postgres(folder, free_port(), Path(found).resolve().parent if "/usr/lib" in found else Path(found).parent)
    server.start()
    connection = psycopg2.connect(host="127.0.0.1", port=server.port, user="mlflow", dbname="postgres")
    connection.autocommit = True
    connection.cursor().execute("CREATE DATABASE mlflow")
    connection.close()
    try:
        yield server
    finally:
        if server.process is not None and server.process.poll() is None:
            stop(server.process)


def _as_nobody() -> list[str]:
    """PostgreSQL refuses to run as root."""
    if os.geteuid():
        return []
    return ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
