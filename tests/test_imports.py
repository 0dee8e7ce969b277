"""Imports point one way, and each big library is imported in its one place only (pyproject.toml has the contracts)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/lint_imports.py"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def test_contracts_are_kept() -> None:
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


def test_broken_contracts_are_found(tmp_path: Path) -> None:
    for name in ("platform", "pipelines", "jobs", "serve", "scripts"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    wrong = {
        "platform/imprint/errors.py": "import imprint.config.base",
        "platform/imprint/methods/base.py": "import imprint.tuning",
        "platform/imprint/cli/run.py": "import ray.data",
        "pipelines/writer.py": "import mlflow",
    }
    for module, line in wrong.items():
        with (tmp_path / module).open("a") as file:
            file.write(f"\n{line}\n")
    result = lint(tmp_path)
    assert result.returncode == 1
    assert "Contracts: 0 kept, 3 broken." in result.stdout
    for found in (
        "imprint.errors -> imprint.config.base", "imprint.methods.base -> imprint.tuning", "imprint.cli.run -> ray",
        "imprint.pipelines.writer -> mlflow",
    ):  # fmt: skip
        assert found in result.stdout


def test_checking_a_job_file_imports_neither_ray_nor_torch() -> None:
    script = (
        "import sys; from imprint.cli.app import app; app(['check', 'jobs/prepare_faces.yaml'], standalone_mode=False);"
        "print(sorted({'ray', 'torch', 'diffusers', 'mlflow', 'deepspeed', 'open_clip'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
