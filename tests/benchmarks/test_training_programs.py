"""The trainer's measurements at their smallest: both loops have the same losses; a killed run ends as one in peace."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1800)]


def run(tmp_path: Path, script: str, *arguments: str) -> tuple[dict[str, Any], str]:
    target = tmp_path / "found.json"
    command = [sys.executable, str(FOLDER / script), *arguments, "--json", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1700, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return json.loads(target.read_text()), done.stdout


def test_both_loops_do_the_same_arithmetic(tmp_path: Path) -> None:
    found, printed = run(tmp_path, "train.py", "--small", "--precision", "fp32")
    runs = {(one["kind"], one["workers"]): one for one in found["runs"]}
    assert runs.keys() == {("ours", 1), ("plain", 1), ("ours", 2), ("plain", 2)}
    for workers in (1, 2):
        assert runs["ours", workers]["losses"] == pytest.approx(runs["plain", workers]["losses"], rel=1e-4)
    assert printed.count("| fp32 |") == 2


def test_a_few_kills(tmp_path: Path) -> None:
    found, printed = run(tmp_path, "chaos.py", "--kills", "3", "--between", "4", "--folder", str(tmp_path / "run"))
    assert [kill["kind"] for kill in found["kills"]] == ["worker", "driver", "checkpoint"]
    assert all(kill["lost"] >= 0 and kill["seconds"] > 0 for kill in found["kills"])
    assert found["different"] == [] and "bit for bit" in printed
