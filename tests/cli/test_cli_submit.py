"""What `imprint submit` would send; tests/integration/test_submit.py sends it."""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from imprint.cli.app import app
from imprint.errors import ConfigError, ImprintError
from imprint.jobs.submit import follow, plan_submission

ROOT = Path(__file__).resolve().parents[2]
LOCAL = "http://127.0.0.1:8265"


def test_the_cluster_runs_the_same_command_in_a_copy(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    file = tmp_path / "jobs" / "a b.yaml"
    plan = plan_submission(file, ["name='x y'", "seed=1"], address="http://head.example:8265", working_dir=tmp_path)
    assert shlex.split(plan.entrypoint) == ["imprint", "run", "jobs/a b.yaml", "name='x y'", "seed=1"]
    assert plan.runtime_env == {"working_dir": str(tmp_path)}
    assert plan.driver_cpus is None


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_a_cluster_on_this_machine_learns_where_relative_paths_start(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMPRINT_ROOT", str(tmp_path))
    plan = plan_submission(ROOT / "jobs/prepare_faces.yaml", [], address=f"http://{host}:8265", working_dir=ROOT)
    assert plan.runtime_env["env_vars"] == {"IMPRINT_ROOT": str(tmp_path)}


def test_job_file_outside_of_the_working_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it lies outside of the working directory"):
        plan_submission(ROOT / "jobs/prepare_faces.yaml", [], address=LOCAL, working_dir=tmp_path)
    with pytest.raises(ConfigError, match="is not a folder"):
        plan_submission(ROOT / "jobs/prepare_faces.yaml", [], address=LOCAL, working_dir=tmp_path / "none")


def test_dry_run_contacts_nothing() -> None:
    file = str(ROOT / "jobs/prepare_faces.yaml")
    command = ["submit", file, "seed=3", "--dry-run", "--address", "http://127.0.0.1:9", "--working-dir", str(ROOT)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0
    assert "imprint run jobs/prepare_faces.yaml seed=3" in result.stderr


class Client:
    """As much of Ray's client as following a log needs."""

    def __init__(self, status: str, code: int | None, message: str = "", lost: bool = False) -> None:
        self.info = SimpleNamespace(status=status, driver_exit_code=code, message=message)
        self.lost = lost

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        yield f"log of {job_id}\n"
        if self.lost:
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")

    def get_job_info(self, job_id: str) -> SimpleNamespace:
        return self.info


@pytest.mark.parametrize(
    ("client", "code", "log"),
    [
        (Client("SUCCEEDED", 0), 0, "log of j\n"),
        (Client("FAILED", 2, "exited with code 2"), 2, "log of j\n"),
        (Client("FAILED", None, "no runtime environment"), 1, "log of j\nno runtime environment\n"),
        (Client("STOPPED", None), 1, "log of j\n"),
    ],
)
def test_following_ends_as_the_job_ends(client: Client, code: int, log: str) -> None:
    written: list[str] = []
    assert follow(client, "j", written.append) == code  # type: ignore[arg-type]
    assert "".join(written) == log


def test_a_lost_connection_is_told() -> None:
    with pytest.raises(ImprintError, match="the job goes on, see `ray job logs -f j`"):
        follow(Client("RUNNING", None, lost=True), "j", lambda text: None)  # type: ignore[arg-type]
