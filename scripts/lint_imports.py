"""Check the import contracts of pyproject.toml.

The linter reads one folder as the package; here four folders make it. So it runs on a copy laid out as installed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Return the linter's exit code: 0 where every contract is kept."""
    folders = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    with tempfile.TemporaryDirectory() as temporary:
        for package, folder in sorted(folders.items()):
            target = Path(temporary, *package.split("."))
            shutil.copytree(ROOT / folder, target, ignore=_all_but_python)
        linter = Path(sys.executable).with_name("lint-imports")
        command = [linter, "--config", ROOT / "pyproject.toml", "--no-cache"]
        return subprocess.run(command, cwd=temporary, check=False).returncode


def _all_but_python(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if Path(folder, name).is_file() and not name.endswith(".py")}


if __name__ == "__main__":
    sys.exit(main())
