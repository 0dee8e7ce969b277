"""The data benchmark at its smallest: every reader gives every picture, and the table has every number."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "data.py"


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_small_benchmark_runs_from_end_to_end(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--small", "--stages", "--json", str(tmp_path / "found.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1700, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found["speed"]) == {"ours", "ray", "webdataset"}
    for name, runs in found["speed"].items():
        assert all(seconds > 0 for run in runs for seconds in run["seconds"])
        assert all(run["images"] == found["pictures"]["pictures"] == 192 for run in runs)
        (memory,) = found["large_reads"][name]
        assert 10 < memory["peak_private_mb"] <= memory["peak_resident_mb"]
        assert memory["images"] == found["large"]["pictures"]
    stages = found["stages"]
    assert set(stages["busy"]) == {"read", "caption", "mask"}
    assert all(0 <= busy <= stages["wall"] * 1.001 for busy in stages["busy"].values())
    assert sum(stages["cpu"].values()) > 0 and stages["pictures"] == 96
    assert 0 <= stages["together"] <= 1
    assert 0 <= stages["trainer"]["data_wait_share"] <= 1
    assert done.stdout.count("|") > 40
    assert "ratio" in done.stdout
