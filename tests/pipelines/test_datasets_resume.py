"""A run that is killed leaves nothing running and nothing half-written, and the next one goes on where it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from imprint.config.jobs.prepare import PrepareFaces
from imprint.pipelines.datasets.faces import prepare_faces

SCRIPT = """
import sys
from imprint.config.jobs.prepare import PrepareFaces
from imprint.pipelines.datasets.faces import prepare_faces
if __name__ == "__main__":
    prepare_faces(PrepareFaces.model_validate_json(sys.argv[1]))
"""


def wait_for(condition: object, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "took too long"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_run_is_taken_up_where_it_was(tmp_path: Path) -> None:
    spec = PrepareFaces(
        job="prepare_faces", name="test", out_dir=str(tmp_path / "killed"), sizes=(32,), workers=2,
        samples_per_shard=20, train_identities=100, heldout_identities=5,
    )  # fmt: skip
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    folder = tmp_path / "killed" / "faces-32"
    with subprocess.Popen([sys.executable, str(script), spec.model_dump_json()]) as run:
        wait_for((folder / ".progress.json").exists)
        workers = psutil.Process(run.pid).children(recursive=True)
        assert len(workers) >= 2
        os.kill(run.pid, signal.SIGKILL)
    wait_for(lambda: not any(worker.is_running() for worker in workers))
    assert not (folder / "manifest.json").exists()
    assert len(list(folder.glob("*.tar"))) < 22, "killed too late to show anything"

    steps: list[int] = []
    prepare_faces(spec, lambda done, total: steps.append(done))
    assert steps[-1] == 430 and steps[0] > 20, "the finished shards were kept"

    whole = spec.model_copy(update={"out_dir": str(tmp_path / "whole")})
    prepare_faces(whole)
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "whole" / "faces-32").iterdir())
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "whole" / "faces-32" / name).read_bytes()
