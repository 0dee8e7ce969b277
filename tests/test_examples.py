"""`make example-METHOD`: every command that it gives is a valid job, of the method that was asked for."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from imprint.config.jobs import Evaluate
from imprint.config.load import JobFile, load_job
from imprint.methods import METHODS

ROOT = Path(__file__).parents[1]
# In place of the command that would run for minutes: writes down what it was asked to do.
RECORDER = '#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done >>"$RECORD"\necho >>"$RECORD"\n'


def commands(method: str, folder: Path) -> tuple[list[list[str]], subprocess.CompletedProcess[str]]:
    """What the script runs for a method, and how it ends."""
    command = folder / "bin" / "imprint"
    command.parent.mkdir(exist_ok=True)
    command.write_text(RECORDER)
    command.chmod(0o755)
    record = folder / "record"
    record.touch()
    env = os.environ | {"VENV": str(folder), "RECORD": str(record)}
    done = subprocess.run([ROOT / "scripts" / "example.sh", method], env=env, capture_output=True, text=True)
    return [block.split("\n") for block in record.read_text().strip().split("\n\n") if block], done


@pytest.mark.parametrize("method", sorted(METHODS))
def test_what_an_example_runs(method: str, tmp_path: Path) -> None:
    found, done = commands(method, tmp_path)
    assert done.returncode == 0, done.stderr
    jobs: list[JobFile] = []
    for verb, file, *overrides in found:
        assert verb == "run"
        jobs.append(load_job(ROOT / file, overrides))
    specs = [job.spec for job in jobs if isinstance(job.spec, Evaluate)]
    assert specs and jobs[-1].kind == "evaluate"
    for spec in specs:
        assert spec.tuning.method == method and spec.baseline is not None and spec.baseline.method != method
        assert spec.name.startswith(f"example-{method}-") and (spec.encoder is not None) == hasattr(
            METHODS[method], "load_encoder"
        )
    trained = {str(getattr(job.spec, "name", "")) for job in jobs}
    encoder = specs[0].encoder
    shipped = encoder is not None and (ROOT / "platform/imprint/weights" / encoder).is_dir()
    assert encoder is None or shipped or Path(encoder).name in trained


def test_an_unknown_method_is_said_so(tmp_path: Path) -> None:
    found, done = commands("e5t", tmp_path)
    assert done.returncode == 2 and "got 'e5t'" in done.stderr and found == []
