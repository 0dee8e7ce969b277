"""The whole Dockerfile in a chroot, then its image as the manifests run it: no root, nothing to write to, no network.

It downloads what the image holds (gigabytes), so that it runs where IMPRINT_BUILD_IMAGE=1 asks for it.
IMPRINT_IMAGE_BASE names a tree that debootstrap made before. What IMPRINT_IMAGE_WORK names is kept, and the next run
finds its finished stages there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from chroot_image import Stage, build, debian

pytestmark = [
    pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(3600),
    pytest.mark.skipif(os.environ.get("IMPRINT_BUILD_IMAGE") != "1", reason="IMPRINT_BUILD_IMAGE is not 1"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a chroot needs root"),
]  # fmt: skip


@pytest.fixture(scope="module")
def image() -> Iterator[Stage]:
    base = os.environ.get("IMPRINT_IMAGE_BASE")
    if base is None and not shutil.which("debootstrap"):
        pytest.skip("debootstrap is not installed, and IMPRINT_IMAGE_BASE names no tree")
    kept = os.environ.get("IMPRINT_IMAGE_WORK")
    work = Path(kept or tempfile.mkdtemp(prefix="imprint-image-"))
    work.mkdir(exist_ok=True)
    try:
        yield build(Path(base) if base else debian(work / "base"), work)
    finally:
        if not kept:  # mounts live in namespaces of their own and ended with them
            subprocess.run(["rm", "-rf", "--one-file-system", work], check=True)


def shell(image: Stage, script: str) -> subprocess.CompletedProcess[str]:
    return image.run(script, as_pod=True)


def test_the_image_holds_what_it_should_and_nothing_of_the_build(image: Stage) -> None:
    assert (image.user, image.folder, image.command) == ("1000:1000", "/opt/imprint", ["imprint", "--help"])
    assert shell(image, "imprint --version").stdout.strip()
    assert shell(image, "id -u; id -g").stdout.split() == ["1000", "1000"]
    assert not (image.tree / "src").exists()
    left = [file for file in (image.tree / "opt" / "imprint").rglob("*") if file.is_file()]
    assert {file.suffix for file in left} == {".yaml", ".py"}


def test_nothing_but_the_volumes_can_be_written(image: Stage) -> None:
    for place in ("/opt/imprint", "/opt/venv", "/etc", "/"):
        refused = shell(image, f"touch {place}/x")
        assert refused.returncode != 0 and "Read-only" in refused.stderr, (place, refused.stderr)
    assert shell(image, "touch /tmp/x ~/x /mnt/imprint/x").returncode == 0


def test_programs_that_the_manifests_call_are_there(image: Stage) -> None:
    for command in ("ray --version", "mlflow --version", "wget --version", "g++ --version", "bash --version"):
        done = shell(image, command)
        assert done.returncode == 0, (command, done.stderr)
    modules = "psycopg2, boto3, s3fs, gcsfs, deepspeed, imprint.serve.deployments, imprint.jobs.pretrain_encoder"
    done = shell(image, f"python -c 'import {modules}'")
    assert done.returncode == 0, done.stderr[-2000:]
    done = shell(image, "python -c 'from imprint.serve.safety import OpenNsfw; OpenNsfw()'")
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_job_file_runs_by_its_name_and_tells_a_wrong_key(image: Stage) -> None:
    wrong = shell(image, "jobs/pretrain_encoder.yaml training.stepz=20")
    assert wrong.returncode == 2, wrong.stderr
    assert "did you mean 'steps'?" in wrong.stderr


def test_a_head_starts_and_ray_job_submit_runs_the_main_job(image: Stage) -> None:
    script = """
    imprint run jobs/prepare_faces.yaml 'sizes=[64]' train_identities=8 heldout_identities=2 workers=1
    export TORCH_EXTENSIONS_DIR=/tmp/torch_extensions HF_HUB_OFFLINE=1
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=0123456789abcdef0123456789abcdef RAY_DASHBOARD_STARTUP_TIMEOUT_S=300
    ray start --head --node-ip-address=127.0.0.1 --dashboard-host=0.0.0.0 --num-cpus=2 --object-store-memory=150000000
    export RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265
    for try in $(seq 60); do ray job list >/dev/null 2>&1 && break || sleep 2; done
    wget -qO- http://127.0.0.1:52365/api/local_raylet_healthz
    ray job submit jobs/pretrain_encoder.yaml training.steps=2 training.batch_size=4 checkpoint.every=2 grid=null \\
        tracking.enabled=false cluster.workers=1
    ls /mnt/imprint/runs/e4t-faces/encoder
    """
    done = shell(image, script)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-4000:]
    assert "succeeded" in done.stdout and "encoder.safetensors" in done.stdout
