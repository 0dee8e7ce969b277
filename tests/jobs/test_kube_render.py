"""A job file as a RayJob: what its sections ask of pods, what its driver reads, and how it is handed to kubectl."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube_manifests import CRDS, pod_templates, schema_problems
from kuberay_rules import broken_rules
from typer.testing import CliRunner

from imprint.cli.app import app
from imprint.config.load import load_job
from imprint.errors import ConfigError, ImprintError
from imprint.jobs.kube import Needs, job_name, needs_of, render, to_yaml
from imprint.jobs.kubectl import Kubectl, follow

ROOT = Path(__file__).resolve().parents[2]
JOB_FILES = sorted((ROOT / "jobs").glob("*.yaml"))
PRETRAIN = ROOT / "jobs" / "pretrain_encoder.yaml"


def ray_job(file: Path, *overrides: str, name: str | None = None) -> dict[str, Any]:
    return render(load_job(file, overrides), overrides, name=name)[-1]


def job_data(file: Path, *overrides: str) -> dict[str, Any]:
    """What the driver in the pod reads."""
    (config_map, _) = render(load_job(file, overrides), overrides)
    return yaml.safe_load(config_map["data"]["job.yaml"])


def resources(manifest: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Limits by the last word of the pod's name."""
    return {
        name.split()[-1]: one["spec"]["containers"][0]["resources"]["limits"] for name, one in pod_templates(manifest)
    }


@pytest.mark.parametrize("file", JOB_FILES, ids=lambda file: file.stem)
def test_every_job_file_becomes_a_rayjob_that_fits(file: Path) -> None:
    (config_map, manifest) = render(load_job(file))
    assert schema_problems(config_map) == []
    assert broken_rules(manifest) == []
    if CRDS.is_dir():
        assert schema_problems(manifest) == []
    assert yaml.safe_load_all(to_yaml([config_map, manifest])) is not None
    assert list(yaml.safe_load_all(to_yaml([config_map, manifest]))) == [config_map, manifest]


@pytest.mark.parametrize("file", JOB_FILES, ids=lambda file: file.stem)
def test_the_driver_reads_the_same_job(file: Path, tmp_path: Path) -> None:
    (config_map, manifest) = render(load_job(file))
    copy = tmp_path / "job.yaml"
    copy.write_text(config_map["data"]["job.yaml"])
    before, after = load_job(file).spec.model_dump(), load_job(copy).spec.model_dump()
    if "tracking" in before:
        assert after["tracking"].pop("uri") == "http://imprint-mlflow:5000"
        assert before["tracking"].pop("uri") is None
    if before["job"].startswith("prepare_") and before.get("workers") == 0:
        assert after.pop("workers") == before.pop("workers") + 2  # a container sees its node's cores, not its own
    assert after == before
    (mount,) = [
        one
        for name, template in pod_templates(manifest)
        if name.endswith("head")
        for one in template["spec"]["containers"][0]["volumeMounts"]
        if one["name"] == "job"
    ]
    assert manifest["spec"]["entrypoint"] == f"imprint run {mount['mountPath']}/job.yaml"


def test_overrides_reach_the_driver_whatever_characters_they_have() -> None:
    # KubeRay pastes the entrypoint into a shell, and Ray into another one; so nothing of the job is in it.
    overrides = ["grid.prompts=['a <concept>; $(id) `id`']", "training.steps=7", "tracking.uri=http://elsewhere:1"]
    data = job_data(PRETRAIN, *overrides)
    assert data["grid"]["prompts"] == ["a <concept>; $(id) `id`"]
    assert data["training"]["steps"] == 7
    assert data["tracking"]["uri"] == "http://elsewhere:1"
    assert "id" not in ray_job(PRETRAIN, *overrides)["spec"]["entrypoint"].split()


def test_pods_get_what_the_sections_ask() -> None:
    overrides = (
        "cluster.workers=4", "cluster.gpus_per_worker=1", "cluster.cpus_per_worker=3", "data.captions.actors=2",
        "data.captions.cpus=1", "data.captions.gpus=0.5", "data.reader.cpus=0.5",
    )  # fmt: skip
    spec = load_job(PRETRAIN, overrides).spec
    # Trainers 4 x 3, captions 2 x 1, masks 1 x 0.1, two read tasks of 0.5; GPUs 4 x 1 + 2 x 0.5.
    assert needs_of(spec) == Needs(4, pytest.approx(12 + 2 + 0.1 + 1), pytest.approx(5))
    limits = resources(ray_job(PRETRAIN, *overrides))
    assert limits["workers"] == {"cpu": "4", "memory": "8Gi", "nvidia.com/gpu": "2"}
    assert limits["head"] == {"cpu": "2", "memory": "6Gi"}
    assert resources(ray_job(PRETRAIN, *overrides, "kube.workers=1"))["workers"]["nvidia.com/gpu"] == "5"
    one = ray_job(PRETRAIN, *overrides, "kube.workers=1", "kube.gpus=8", "kube.cpus=32", "kube.memory=256Gi")
    assert resources(one)["workers"] == {"cpu": "32", "memory": "256Gi", "nvidia.com/gpu": "8"}
    (group,) = one["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (1, 1, 1)


def test_threads_without_gpus_need_as_many_cpus() -> None:
    limits = resources(ray_job(PRETRAIN, "cluster.workers=2", "cluster.threads_per_worker=6"))
    assert limits["workers"]["cpu"] == "7"  # 2 x 6 for threads, 0.2 for stages, 0.5 for reading; half of it, rounded up


def test_jobs_of_one_process_run_on_the_head_alone() -> None:
    manifest = ray_job(ROOT / "jobs" / "train_backbone.yaml", "threads=6")
    assert "workerGroupSpecs" not in manifest["spec"]["rayClusterSpec"]
    assert manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"] == {}
    assert resources(manifest)["head"]["cpu"] == "6"
    faces = ROOT / "jobs" / "prepare_faces.yaml"
    assert job_data(faces, "kube.head_cpus=8")["workers"] == 8
    assert job_data(faces, "workers=3", "kube.head_cpus=8")["workers"] == 3


def test_image_queue_and_namespace_come_from_the_job_file() -> None:
    def image(manifest: dict[str, Any]) -> set[str]:
        return {c["image"] for _, t in pod_templates(manifest) for c in t["spec"]["containers"]}

    assert {one.rpartition("-")[2] for one in image(ray_job(PRETRAIN))} == {"cpu"}
    assert {one.rpartition("-")[2] for one in image(ray_job(PRETRAIN, "cluster.gpus_per_worker=1"))} == {"cuda"}
    asked = ray_job(
        PRETRAIN, "kube.image=reg.example/i:1", "kube.queue=night", "kube.namespace=lab", "kube.internet=true"
    )
    assert image(asked) == {"reg.example/i:1"}
    assert asked["metadata"]["namespace"] == "lab"
    assert asked["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "night"
    labels = [template["metadata"]["labels"] for _, template in pod_templates(asked)]
    assert all(one.get("imprint.dev/internet") == "true" for one in labels)
    assert "kueue.x-k8s.io/queue-name" not in ray_job(PRETRAIN, "kube.queue=null")["metadata"]["labels"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("e4t-faces", "e4t-faces"), ("My_Run.2", "my-run-2"), ("2nd", "job-2nd"), ("x" * 60, "x" * 47), ("___", "job")],
)
def test_names_are_what_kuberay_takes(name: str, expected: str) -> None:
    assert job_name(name) == expected


def test_where_it_runs_decides_no_result() -> None:
    faces = ROOT / "jobs" / "prepare_faces.yaml"
    assert load_job(faces, ["kube.memory=1Gi"]).spec.model_dump() == load_job(faces).spec.model_dump()


def test_a_training_without_workers_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"kube\.workers: got 0, expected 1 or more"):
        ray_job(PRETRAIN, "kube.workers=0")
    with pytest.raises(ConfigError, match="memory"):
        load_job(PRETRAIN, ["kube.memory=8 gigabytes"])


# -- the command -------------------------------------------------------------------------------------------------


def submit(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["submit", str(PRETRAIN), "--kube", *arguments])


def test_dry_run_prints_the_manifests_and_contacts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    result = submit("--dry-run", "--name", "mine", "training.steps=9")
    assert result.exit_code == 0
    config_map, manifest = yaml.safe_load_all(result.stdout)
    assert (config_map["metadata"]["name"], manifest["metadata"]["name"]) == ("mine", "mine")
    assert yaml.safe_load(config_map["data"]["job.yaml"])["training"]["steps"] == 9
    assert "# override: 'training.steps=9'" in config_map["data"]["job.yaml"]


def test_without_a_name_each_submission_has_its_own() -> None:
    name = list(yaml.safe_load_all(submit("--dry-run").stdout))[-1]["metadata"]["name"]
    assert name.startswith("e4t-faces-20")
    assert len(name) <= 47


def test_kubectl_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    result = submit()
    assert result.exit_code == 2
    assert "kubectl is not on PATH" in result.stderr


def write_kubectl(folder: Path, script: str) -> Kubectl:
    """A program that answers as kubectl does."""
    file = folder / "kubectl"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return Kubectl(str(file))


def test_what_was_rendered_is_created_and_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = json.dumps({"spec": {}, "status": {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}})
    (tmp_path / "done.json").write_text(done)
    write_kubectl(
        tmp_path,
        f'cd {tmp_path}; echo "$@" >> calls; if [ "$3" = create ]; then cat > given; else cat done.json; fi',
    )
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    result = submit("--name", "mine", "--context", "there")
    assert result.exit_code == 0, result.stderr
    assert "mine: Complete, SUCCEEDED" in result.stdout
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == ["--context there create -f -", "--context there get rayjobs.ray.io mine -n imprint -o json"]
    assert [one["kind"] for one in yaml.safe_load_all((tmp_path / "given").read_text())] == ["ConfigMap", "RayJob"]


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, 0, "j: Complete, SUCCEEDED\n"),
        (
            {"jobDeploymentStatus": "Complete", "jobStatus": "FAILED", "message": "exit 2"},
            1,
            "j: Complete, FAILED: exit 2\n",
        ),
        ({"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded"}, 1, "j: Failed: DeadlineExceeded\n"),
        ({"jobDeploymentStatus": "ValidationFailed"}, 1, "j: ValidationFailed\n"),
    ],
)
def test_following_ends_as_the_rayjob_ends(status: dict[str, str], code: int, told: str, tmp_path: Path) -> None:
    (tmp_path / "answer.json").write_text(json.dumps({"spec": {}, "status": status}))
    written: list[str] = []
    assert follow(write_kubectl(tmp_path, f"cat {tmp_path}/answer.json"), "j", "imprint", written.append) == code
    assert "".join(written) == told


def test_following_tells_each_state_once_and_outlives_a_lost_answer(tmp_path: Path) -> None:
    states: list[dict[str, Any]] = [
        {"spec": {"suspend": True}},
        {"spec": {}, "status": {"jobDeploymentStatus": "Initializing"}},
        {"spec": {}, "status": {"jobDeploymentStatus": "Initializing"}},
        {"spec": {}, "status": {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}},
        {"spec": {}, "status": {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}},
    ]
    for number, state in enumerate(states):
        (tmp_path / f"{number}.json").write_text(json.dumps(state))
    script = (
        f"cd {tmp_path}; n=$(ls gone* 2>/dev/null | wc -l); : > gone$n; "
        'case $n in 2) echo "Unable to connect to the server: EOF" >&2; exit 1;; [01]) cat $n.json;; '
        "*) cat $((n-1)).json;; esac"
    )
    written: list[str] = []
    assert follow(write_kubectl(tmp_path, script), "j", "imprint", written.append, poll_s=0.01) == 0
    assert written == [
        "j: Suspended\n", "j: Initializing\n", "j: Running, RUNNING\n", "j: Complete, SUCCEEDED\n",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ('error: no matches for kind "RayJob" in version "ray.io/v1"', "KubeRay's operator and its CRDs are missing"),
        ('Error from server (AlreadyExists): configmaps "j" already exists', "choose another --name"),
        ('Error from server (NotFound): namespaces "imprint" not found', "apply k8s/overlays/dev or prod first"),
        ("Unable to connect to the server: dial tcp 127.0.0.1:1: connect: connection refused", "current-context"),
    ],
)
def test_what_kubectl_refuses_comes_with_a_remedy(said: str, remedy: str, tmp_path: Path) -> None:
    (tmp_path / "said").write_text(said)
    with pytest.raises(ImprintError, match="creating the RayJob") as raised:
        write_kubectl(tmp_path, f"cat {tmp_path}/said >&2; exit 1").create("kind: RayJob")
    assert said in str(raised.value)
    assert remedy in str(raised.value)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not on PATH")
def test_no_cluster_is_told_by_the_real_kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "none",
        "clusters": [{"name": "none", "cluster": {"server": "http://127.0.0.1:9"}}],
        "contexts": [{"name": "none", "context": {"cluster": "none", "user": ""}}],
    }  # fmt: skip
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    result = submit("--name", "mine")
    assert result.exit_code == 1
    assert "creating the RayJob" in result.stderr
    assert "check `kubectl config current-context`" in result.stderr
