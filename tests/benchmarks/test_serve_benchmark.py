"""The service's benchmark at its smallest: everything is answered, and the tables have every number."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serve.py"


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_small_benchmark_runs_from_end_to_end(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--small", "--json", str(tmp_path / "found.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1700, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["upload"]) == found["sizes"]["uploads"] and min(found["upload"]) > 0
    keys = {"e4t, one", "e4t, all", "lora, one", "lora, all"}
    assert found["one_by_one"].keys() == keys
    for load in found["one_by_one"].values():
        assert load["statuses"] == {"200": found["sizes"]["pictures"]}
    for name in ("with", "without"):
        assert found["throughput"][name].keys() == keys
        assert all(load["per_second"] > 0 for load in found["throughput"][name].values())
    for method in ("e4t", "lora"):
        assert all(min(seconds) > 0 for seconds in found["swap"][method].values())
    for load in found["loads"].values():
        assert load["accepted"] and load["statuses"].keys() <= {"200", "429", "503"}
    assert done.stdout.count("|") > 80 and "Without an answer: 0." in done.stdout
