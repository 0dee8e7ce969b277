"""The house stays as it was planned: what may lie where, what may be imported, and what must never be read."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE_DIRS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
CODE = [folder for folder in (*PACKAGE_DIRS.values(), "tests", "benchmarks", "scripts") if (ROOT / folder).is_dir()]
JOB_FILES = sorted((ROOT / "jobs").glob("*.yaml"))
MAX_LINES = 600


@cache
def python_files() -> list[Path]:
    return sorted(file for folder in CODE for file in (ROOT / folder).rglob("*.py"))


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(), str(file))


def imported_modules(file: Path) -> Iterator[str]:
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""


def committed() -> list[tuple[str, Path]]:
    """Mode and path of each file that git knows."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-s", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    entries = [entry.partition("\t") for entry in listed.stdout.split("\0") if entry]
    return [(left.split()[0], Path(path)) for left, _, path in entries]


def test_platform_is_no_package() -> None:
    # It would shadow Python's own `platform` for whatever starts in the repository root, Ray's workers among it.
    assert not (ROOT / "platform" / "__init__.py").exists()
    found = subprocess.run(
        [sys.executable, "-c", "import platform; print(platform.__file__, platform.system())"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert str(ROOT / "platform") not in found


def test_folders_are_imported_by_their_full_names() -> None:
    bare = {"jobs", "pipelines", "serve", "tests", "benchmarks"}
    wrong = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in python_files()
        for name in imported_modules(file)
        if name.split(".")[0] in bare
    ]
    assert wrong == []


def test_every_package_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = {
        ".".join([package, *init.parent.relative_to(ROOT / folder).parts])
        for package, folder in PACKAGE_DIRS.items()
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert sorted(project["tool"]["setuptools"]["packages"]) == sorted(found)


def test_the_package_is_typed() -> None:
    assert (ROOT / "platform" / "imprint" / "py.typed").is_file()


def test_files_are_about_one_thing() -> None:
    long = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in python_files()}
    assert {file: lines for file, lines in long.items() if lines > MAX_LINES} == {}


def test_test_files_have_different_names() -> None:
    # Without packages in tests/, pytest cannot tell two modules of one name apart.
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("file", JOB_FILES, ids=lambda file: file.name)
def test_job_file_is_executable_and_names_its_schema(file: Path) -> None:
    lines = file.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env -S imprint run"
    assert "# yaml-language-server: $schema=schema.json" in lines[:3]
    assert os.access(file, os.X_OK)


def test_job_files_are_executable_in_git() -> None:
    # Ray packs a working directory with its modes; a checkout must have them right from the start.
    modes = {path.name: mode for mode, path in committed() if path.parent == Path("jobs") and path.suffix == ".yaml"}
    assert modes
    assert set(modes.values()) == {"100755"}, modes


def test_no_address_of_a_registry_is_written_down() -> None:
    # Where packages come from is the business of the machine that installs them.
    hosts = ["py" + "pi.org", "python" + "hosted", "registry." + "npm", "npm" + "mirror", "--extra-" + "index-url"]
    wrong = [
        f"{path}: {host}"
        for _, path in committed()
        if path.suffix not in {".png", ".safetensors", ".jpg"} and (ROOT / path).is_file()
        for host in hosts
        if host in (ROOT / path).read_text(errors="ignore")
    ]
    assert wrong == []


def test_nothing_is_unpickled() -> None:
    wrong = []
    for file in python_files():
        if "tests" in file.parts:  # tests pickle errors, to show that they survive it
            continue
        where = file.relative_to(ROOT)
        wrong += [f"{where}: {name}" for name in imported_modules(file) if name.split(".")[0] in {"pickle", "dill"}]
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"torch.load", "yaml.load", "yaml.unsafe_load"}:
                wrong.append(f"{where}:{node.lineno}: {ast.unparse(node.func)}")
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
                wrong.append(f"{where}:{node.value.lineno}: allow_pickle")
    assert wrong == []
