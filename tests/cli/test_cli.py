"""The commands, run in this process; jobs in them are real but small."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

import imprint.jobs
from imprint.cli.app import app
from imprint.config.jobs import JOB_SPECS
from imprint.config.schema import job_schema
from imprint.errors import DataError
from imprint.jobs import load_runner

JOB = """\
#!/usr/bin/env -S imprint run
job: prepare_faces
name: faces
out_dir: {out}
sizes: [16]
train_identities: 2
heldout_identities: 1
workers: 1
"""

runner = CliRunner()


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    file = tmp_path / "faces.yaml"
    file.write_text(JOB.format(out=tmp_path / "out"))
    file.chmod(0o755)
    return file


def test_version() -> None:
    result = runner.invoke(app, ["--version"])
    assert result.output == f"imprint {version('imprint')}\n"


def test_run_runs_the_job_with_its_overrides(job_file: Path) -> None:
    result = runner.invoke(app, ["run", str(job_file), "train_variants=3", "heldout_variants=1"])
    assert result.exit_code == 0, result.output
    manifest = json.loads((job_file.parent / "out" / "faces-16" / "manifest.json").read_text())
    assert sum(shard["samples"] for shard in manifest["shards"]) == 2 * 3 + 1 * 1


def test_check_validates_and_starts_nothing(job_file: Path) -> None:
    result = runner.invoke(app, ["check", str(job_file)])
    assert result.exit_code == 0
    assert "is a valid prepare_faces job" in result.output
    assert not (job_file.parent / "out").exists()


@pytest.mark.parametrize("command", ["run", "check", "submit"])
def test_a_bad_file_is_one_message_and_exit_code_2(job_file: Path, command: str) -> None:
    result = runner.invoke(app, [command, str(job_file), "train_identites=5"])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == (
        "error: override 'train_identites=5': train_identites: unknown key; did you mean 'train_identities'?\n"
    )
    assert not (job_file.parent / "out").exists()


def test_each_problem_is_a_line_of_its_own(job_file: Path) -> None:
    result = runner.invoke(app, ["check", str(job_file), "seed=x", "workers=-1"])
    assert [line.partition(":")[0] for line in result.stderr.splitlines()] == ["error", "error"]


def test_traceback_on_request(job_file: Path) -> None:
    result = runner.invoke(app, ["check", str(job_file), "seed=x", "--traceback"])
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert "ConfigError" in result.stderr


def test_errors_of_a_job_keep_their_message_and_exit_code(job_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise DataError("reading a shard: it is cut short", shard="a.tar")

    monkeypatch.setattr(imprint.jobs, "load_runner", lambda _: fail)
    result = runner.invoke(app, ["run", str(job_file)])
    assert result.exit_code == 1
    assert result.stderr == "error: reading a shard: it is cut short [shard=a.tar]\n"


def test_a_bug_keeps_its_traceback(job_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(imprint.jobs, "load_runner", lambda _: fail)
    result = runner.invoke(app, ["run", str(job_file)])
    assert isinstance(result.exception, ZeroDivisionError)


def test_preflight_problems_stop_run_and_check(job_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wary(JOB_SPECS["prepare_faces"]):  # type: ignore[misc]
        def preflight(self) -> list[str]:
            return ["shards.0: data/x.tar is not there; make it with jobs/prepare_faces.yaml"]

    monkeypatch.setitem(JOB_SPECS, "prepare_faces", Wary)
    for command in ("run", "check"):
        result = runner.invoke(app, [command, str(job_file)])
        assert result.exit_code == 2
        assert result.stderr.startswith(f"error: {job_file}: shards.0: data/x.tar is not there")
    assert not (job_file.parent / "out").exists()


def test_schema_prints_json() -> None:
    assert json.loads(runner.invoke(app, ["schema"]).stdout) == job_schema()
    assert json.loads(runner.invoke(app, ["schema", "prepare_faces"]).stdout) == job_schema("prepare_faces")
    unknown = runner.invoke(app, ["schema", "prepare_face"])
    assert unknown.exit_code == 2
    assert "did you mean 'prepare_faces'" in unknown.stderr


def test_unknown_runner_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(imprint.jobs.RUNNERS, "prepare_faces")
    with pytest.raises(imprint.jobs.ConfigError, match="nothing runs it here"):
        load_runner("prepare_faces")


def test_a_job_file_runs_as_a_program(job_file: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        [job_file, "seed=nothing"], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr == "error: override 'seed=nothing': seed: got 'nothing', expected a valid integer\n"


def test_interrupt_exits_with_130(job_file: Path) -> None:
    script = (
        "import os, signal, imprint.jobs; from imprint.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored\n"
        "imprint.jobs.load_runner = lambda kind: lambda *a, **k: os.kill(os.getpid(), signal.SIGINT)\n"
        "main()"
    )
    command = [sys.executable, "-c", script, "run", job_file]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 128 + signal.SIGINT
    assert "Traceback" not in result.stderr
