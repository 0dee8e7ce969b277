"""The programs for GPUs at small size on a CPU: they run, never import Ray, and their numbers hang together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
WITHOUT_RAY = """
import runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
assert "ray" not in sys.modules, "the core runs without Ray"
"""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def run(script: str, tmp_path: Path, *arguments: str) -> list[dict[str, Any]]:
    target = tmp_path / "found.json"
    command = [sys.executable, "-c", WITHOUT_RAY, str(FOLDER / script), "--reduced", "--device", "cpu", *arguments]
    done = subprocess.run(
        [*command, "--json", str(target)], capture_output=True, text=True, timeout=1100, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(target.read_text())["rows"]
    assert done.stdout.count("|") > 8 * len(rows)
    return rows


def test_training(tmp_path: Path) -> None:
    options = ["bf16,channels_last", "autocast,checkpointing,ema", ""]
    rows = run("gpu_train.py", tmp_path, "--models", "sd21-base", "sdxl", "--batch-sizes", "2", "--steps", "2",
               "--warm", "1", "--options", *options)  # fmt: skip
    assert [(row["model"], row["options"]) for row in rows] == [
        (model, option or "fp32") for model in ("sd21-base", "sdxl") for option in options
    ]
    for row in rows:
        assert row["images/s"] == pytest.approx(2000 / row["step, ms"])
        assert row["MFU"] is None and row["peak memory, GB"] > 0.1
        assert row["TFLOP an image"] == next(r for r in rows if r["model"] == row["model"])["TFLOP an image"]


def test_tuning(tmp_path: Path) -> None:
    methods = ["e4t", "domain_agnostic", "dreambooth", "lora", "textual_inversion"]
    rows = run("gpu_tune.py", tmp_path, "--methods", *methods, "--steps", "2", "--batch-sizes", "2", "--no-prior",
               "--no-warm", "--sample-steps", "2")  # fmt: skip
    assert [row["method"] for row in rows] == methods
    for row in rows:
        assert row["both, s"] == pytest.approx(row["tuning, s"] + row["first sample after, s"])
        assert (row["steps"], row["pictures a step"]) == (2, 2)


def test_sampling(tmp_path: Path) -> None:
    rows = run("gpu_sample.py", tmp_path, "--models", "sd15", "sdxl", "--batch-sizes", "1", "3", "--steps", "2",
               "--options", "bf16,channels_last", "--times", "1")  # fmt: skip
    assert [(row["model"], row["batch"]) for row in rows] == [("sd15", 1), ("sd15", 3), ("sdxl", 1), ("sdxl", 3)]
    for row in rows:
        assert row["images/s"] == pytest.approx(row["batch"] / row["seconds a batch"])
