"""The Dockerfile, as far as it can be tried without a container engine: its files, its stages, and its own steps."""

from __future__ import annotations

import glob
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser

from imprint.jobs import kube

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "k8s" / "Dockerfile"
INSTALL = "k8s/image/install.sh"

Step = tuple[str, str]


@cache
def stages() -> dict[str, tuple[str, list[Step]]]:
    """Name -> what it begins from, and its instructions."""
    parser = DockerfileParser(str(DOCKERFILE), build_args={"VARIANT": "cuda"})
    found: dict[str, tuple[str, list[Step]]] = {}
    current: list[Step] = []
    for entry in parser.structure:
        kind, value = entry["instruction"], entry["value"]
        if kind == "FROM":
            base, name = re.fullmatch(r"(\S+) AS (\S+)", value).groups()  # type: ignore[union-attr]
            current = []
            found[name] = (base, current)
        elif kind != "COMMENT":
            current.append((kind, value))
    return found


def steps(stage: str, kind: str) -> list[str]:
    return [value for one, value in stages()[stage][1] if one == kind]


def copies(stage: str) -> Iterator[tuple[list[str], str]]:
    """Sources in the repository, and where they go."""
    for value in steps(stage, "COPY"):
        if not value.startswith("--from="):
            *sources, target = shlex.split(value)
            yield sources, target


def arguments() -> dict[str, str]:
    """ARGs before the first stage."""
    text = DOCKERFILE.read_text()
    return dict(re.findall(r"^ARG (\w+)=(.*)$", text[: text.index("\nFROM ")], re.MULTILINE))


def test_stages_begin_from_what_is_there() -> None:
    names = list(stages())
    assert names == ["build", "runtime-cpu", "runtime-cuda", "runtime"]
    for number, (name, (base, _)) in enumerate(stages().items()):
        for variable in re.findall(r"\$\{(\w+)\}", base):
            assert variable in arguments(), name
        for variant in ("cpu", "cuda"):
            filled = base.replace("${VARIANT}", variant).replace("${BASE}", arguments()["BASE"])
            assert filled in names[:number] or re.fullmatch(r"[\w./-]+:[\w.-]+", filled), (name, filled)
    for name in names:
        for value in steps(name, "COPY"):
            if value.startswith("--from="):
                assert value.split()[0].removeprefix("--from=") in names


def test_what_is_copied_is_there_and_not_ignored() -> None:
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    sources = [source for name in stages() for many, _ in copies(name) for source in many]
    assert len(sources) > 10
    for source in sources:
        if source == "serve" and not (ROOT / "serve").exists():
            continue  # comes with the endpoints
        assert glob.glob(str(ROOT / source)), source
        assert any(source == one or source.startswith(f"{one}/") for one in kept), source
    assert kept == sorted(set(kept), key=kept.index)
    assert all(any(source == one or source.startswith(f"{one}/") for source in sources) for one in kept)


def test_every_folder_of_the_package_is_copied() -> None:
    folders = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"].values()
    copied = {source for many, _ in copies("build") for source in many}
    assert {Path(folder).parts[0] for folder in folders} <= copied


def test_scripts_that_are_run_were_copied_before_and_are_whole() -> None:
    copied: set[str] = set()
    ran = []
    for kind, value in stages()["build"][1]:
        if kind == "COPY":
            copied |= set(shlex.split(value)[:-1])
        if kind == "RUN":
            script = shlex.split(value)[0]
            assert script in copied
            assert os.access(ROOT / script, os.X_OK)
            ran.append(value)
    assert ran == [f'{INSTALL} dependencies /opt/venv "${{TORCH_INDEX}}"', f"{INSTALL} package /opt/venv"]
    subprocess.run(["bash", "-n", ROOT / INSTALL], check=True)
    for value in steps("runtime-cpu", "RUN"):
        subprocess.run(["bash", "-n", "-c", value], check=True)


def test_the_image_is_what_the_manifests_count_on() -> None:
    (user,) = steps("runtime-cpu", "USER")
    assert user == f"{kube._USER}:{kube._USER}"
    (installs,) = steps("runtime-cpu", "RUN")
    assert {"bash", "wget", "g++"} <= set(installs.split())
    assert f"--uid {kube._USER}" in installs
    assert f"--home-dir {kube.HOME}" in installs
    (variables,) = steps("runtime-cpu", "ENV")
    environment = dict(one.split("=", 1) for one in shlex.split(variables))
    assert environment["HOME"] == kube.HOME
    assert environment["IMPRINT_ROOT"] == kube.ROOT
    assert environment["PATH"].split(":")[0] == "/opt/venv/bin"
    assert "USER" not in {kind for kind, _ in stages()["runtime-cuda"][1] + stages()["runtime"][1]}
    buckets = (ROOT / "k8s" / "base" / "mlflow.yaml").read_text()
    (folder,) = steps("runtime-cpu", "WORKDIR")
    (place,) = [target for sources, target in copies("runtime-cpu") if "k8s/image/make_buckets.py" in sources]
    assert f"{folder}/{place}make_buckets.py" in buckets


def test_what_the_package_asks_for_is_installed() -> None:
    command = [sys.executable, ROOT / "k8s/image/requirements.py", ROOT / "pyproject.toml", "cluster"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(project["dependencies"]) <= set(printed)
    assert {re.split(r"[\[<>=]", one)[0] for one in printed} >= {"ray", "s3fs", "boto3", "psycopg2-binary"}
    assert not any(one.startswith("imprint") for one in printed)
    pins = {
        line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    names = {re.split(r"[\[<>=]", one)[0].lower().replace("_", "-") for one in printed}
    assert names <= pins, names - pins


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_steps_make_an_image_where_the_job_file_runs(tmp_path: Path) -> None:
    """The COPYs and the second RUN, into folders; of the first one the result is this environment's packages."""
    source, image = tmp_path / "src", tmp_path / "image"
    for many, target in copies("build"):
        _copy(many, source, target)
    for many, target in copies("runtime-cpu"):
        _copy(many, image, target)
    venv.create(tmp_path / "venv", with_pip=True)
    inside = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")}))
    for old in [*inside.glob("setuptools*"), inside / "pkg_resources"]:  # Python 3.11 brings one that is too old
        shutil.rmtree(old, ignore_errors=True)
    # As a plain path, so that what is there for editing this checkout is not followed.
    (inside / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    subprocess.run([source / INSTALL, "package", tmp_path / "venv"], check=True, cwd=source)
    shutil.rmtree(source)

    environment = {
        "PATH": f"{tmp_path / 'venv' / 'bin'}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "IMPRINT_ROOT": str(tmp_path),
    }

    def shell(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", command], cwd=image, env=environment, capture_output=True, text=True, check=False
        )

    where = shell("python -c 'import imprint; print(imprint.__file__)'")
    assert where.stdout.startswith(str(tmp_path / "venv")), where.stderr
    wrong = shell(
        "jobs/pretrain_encoder.yaml training.stepz=20"
    )  # as `ray job submit jobs/pretrain_encoder.yaml` runs it
    assert wrong.returncode == 2, wrong.stderr
    assert "training.stepz: unknown key; did you mean 'steps'?" in wrong.stderr
    made = shell("jobs/prepare_faces.yaml 'sizes=[16]' train_identities=1 heldout_identities=1 workers=1")
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "data" / "faces-16" / "manifest.json").is_file()
    weights = shell("python -c 'from imprint.backbone.loading import *; import imprint, pathlib; "
                    "print(len(list((pathlib.Path(imprint.__file__).parent / \"weights\").glob(\"*\"))))'")  # fmt: skip
    assert int(weights.stdout) >= 3, weights.stderr


def _copy(sources: list[str], folder: Path, target: str) -> None:
    for source in sources:
        for found in glob.glob(str(ROOT / source)):
            place = folder / target
            if Path(found).is_dir():
                shutil.copytree(found, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                (place if target.endswith("/") else place.parent).mkdir(parents=True, exist_ok=True)
                shutil.copy(found, place)
